"""The loop over layers on CPUs against the plain one: the same numbers, and no stack in float32."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frame_jax.config.models import ModelConfig
from frame_jax.models import layer_loop, transformer
from frame_jax.models.transformer import Decoder
from tests.optimized import compile_optimized

SHAPE = ModelConfig(
    hidden_size=64, intermediate_size=160, num_layers=3, num_heads=4, num_kv_heads=2
)


def gradient(decoder: Decoder) -> jax.stages.Wrapped:
    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        positions = jnp.broadcast_to(jnp.arange(256), tokens.shape)
        hidden, _ = decoder.forward(params, tokens, jnp.zeros_like(tokens), positions)
        return jnp.sum(jnp.square(hidden.astype(jnp.float32)) * jnp.arange(64))

    return jax.jit(jax.value_and_grad(loss))


# A whole stack of activations in float32, [layers, rows, tokens, width].
FLOAT32_STACK = re.compile(r"f32\[3,2,256,(64|160)\]")


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "minimal", "full"])
def test_values_and_derivatives_are_the_plain_loops_without_a_stack_in_float32(
    remat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(SHAPE, 128, remat=remat)
    params = decoder.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 256), 0, 128)
    ours = compile_optimized(gradient(decoder).lower(params, tokens))
    assert not FLOAT32_STACK.search(ours.as_text())
    if not layer_loop.STACKS_NEED_BITS:
        return  # the plain loop is ours
    monkeypatch.setattr(layer_loop, "STACKS_NEED_BITS", False)
    plain = compile_optimized(gradient(decoder).lower(params, tokens))
    jax.tree.map(np.testing.assert_array_equal, ours(params, tokens), plain(params, tokens))
    assert FLOAT32_STACK.search(plain.as_text()), "STACKS_NEED_BITS names a version too many"
    assert ours.memory_analysis().temp_size_in_bytes < plain.memory_analysis().temp_size_in_bytes


def test_few_repeats_with_loops_inside_are_unrolled(monkeypatch: pytest.MonkeyPatch) -> None:
    """On GPUs: the same numbers, and no loop in a loop, whose stacks would be copied."""
    shape = dataclasses.replace(
        SHAPE, num_layers=6, layers=("attention+dense", "attention+dense", "attention+none")
    )
    decoder = Decoder(shape, 128, compute_dtype="float32", remat="minimal")
    params = decoder.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 256), 0, 128)
    monkeypatch.setattr(layer_loop, "STACKS_NEED_BITS", False)
    loop_in_loop = "while/body/closed_call/while/body"
    rolled = compile_optimized(gradient(decoder).lower(params, tokens))
    assert loop_in_loop in rolled.as_text()
    monkeypatch.setattr(transformer, "platform", lambda: "gpu")
    unrolled = compile_optimized(gradient(decoder).lower(params, tokens))
    assert loop_in_loop not in unrolled.as_text()
    for ours, theirs in zip(
        *(jax.tree.leaves(step(params, tokens)) for step in (unrolled, rolled)), strict=True
    ):
        scale = float(jnp.max(jnp.abs(theirs)))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale)
    many = dataclasses.replace(decoder, config=dataclasses.replace(shape, num_layers=60))
    assert many._repeats_unrolled == 1
    plain = dataclasses.replace(decoder, config=dataclasses.replace(SHAPE, num_layers=6))
    assert plain._repeats_unrolled == plain.config.repeats == 1
