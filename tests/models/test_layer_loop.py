"""The loop over layers on CPUs against the plain one: the same numbers, in less memory."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frame_jax.config.models import ModelConfig
from frame_jax.models import transformer
from frame_jax.models.functional import Decoder
from frame_jax.models.layer_loop import run_layers

SHAPE = ModelConfig(
    hidden_size=64, intermediate_size=160, num_layers=3, num_heads=4, num_kv_heads=2
)


def gradient(decoder: Decoder) -> Callable[..., Any]:
    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        hidden = decoder.bind(params)(
            tokens, jnp.zeros_like(tokens), jnp.broadcast_to(jnp.arange(256), tokens.shape)
        )
        return jnp.sum(jnp.square(hidden.astype(jnp.float32)) * jnp.arange(64))

    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize("remat", ["none", "minimal", "full"])
def test_values_and_derivatives_are_the_plain_loops_in_less_memory(
    remat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(SHAPE, 128, remat=remat)
    params = decoder.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 256), 0, 128)
    ours = gradient(decoder).lower(params, tokens).compile()  # type: ignore[attr-defined]
    monkeypatch.setattr(transformer, "run_layers_on_cpu", run_layers)
    plain = gradient(decoder).lower(params, tokens).compile()  # type: ignore[attr-defined]
    jax.tree.map(np.testing.assert_array_equal, ours(params, tokens), plain(params, tokens))
    # The whole stack of an activation, [layers, rows, tokens, width], is never made in float32.
    stack = re.compile(r"f32\[3,2,256,(64|160)\]")
    assert not stack.search(ours.as_text())
    assert stack.search(plain.as_text()), "XLA has learned it: run_layers_on_cpu can go"
    assert ours.memory_analysis().temp_size_in_bytes < plain.memory_analysis().temp_size_in_bytes
