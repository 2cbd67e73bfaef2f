"""What every layer needs to know about the tokens."""

from __future__ import annotations

from typing import NamedTuple

import jax


class LayerContext(NamedTuple):
    """Beside activations and parameters, all that a layer reads.

    Attributes:
        segment_ids: [B, T] int32; tokens attend inside their segment.
        positions: [B, T] int32; a Mamba-2 layer starts anew where they are 0.
        rotary: Two arrays [B, T, 1, rotary width], as `rotary_tables` makes them.
        loss_mask: [B, T] float32, 1 for tokens that count in the statistics of routers; None for no
            statistics.
    """

    segment_ids: jax.Array
    positions: jax.Array
    rotary: tuple[jax.Array, jax.Array]
    loss_mask: jax.Array | None
