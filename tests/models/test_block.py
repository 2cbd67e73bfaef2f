"""What a dense feed-forward keeps for its derivatives."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from frame_jax.config.models import ModelConfig
from frame_jax.models.block import apply_dense
from frame_jax.models.layers import LayerContext

B, T, D, INNER = 2, 8, 16, 40


@pytest.mark.parametrize(("activation", "kept"), [("swiglu", 2), ("gelu", 1)])
def test_keeps_what_comes_out_of_the_first_products_alone(activation: str, kept: int) -> None:
    c = replace(ModelConfig(D, INNER, 1, 2, 2), activation=activation)
    p = {"gate": jnp.ones((D, INNER)), "up": jnp.ones((D, INNER)), "down": jnp.ones((INNER, D))}
    ids = jnp.zeros((B, T), jnp.int32)
    context = LayerContext(ids, ids, (ids, ids), None)
    x = jnp.ones((B, T, D), jnp.bfloat16)
    _, pull_back = jax.vjp(lambda x, p: apply_dense(c, p, x, context)[0], x, p)
    wide = [leaf for leaf in jax.tree.leaves(pull_back) if leaf.shape == (B, T, INNER)]
    assert len(wide) == kept
