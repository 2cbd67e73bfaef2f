"""What the two forms of the state-space sum read, `ssd` and `triton_ssd`."""

from typing import NamedTuple

from jax import Array

NEGLIGIBLE_LOG_DECAY = -128.0  # exp of this is 0 in float32
EXACT = 1 / 128  # multiples of this up to 128 sum exactly in float32, 1,024 of them


class TokenInputs(NamedTuple):
    """The inputs of the recurrence at Q tokens, T or a chunk; R = H / G heads read one group.

    Attributes:
        x: [B, Q, G, R, P].
        dt: [B, Q, G, R] float32.
        log_decay: [B, Q, G, R] float32, 0 or less; `NEGLIGIBLE_LOG_DECAY`, the least, where a
            document begins.
        b: [B, Q, G, N].
        c: [B, Q, G, N].
    """

    x: Array
    dt: Array
    log_decay: Array
    b: Array
    c: Array
