"""Attention through Triton, interpreted on the CPU, against NumPy in float64; and compiled for GPUs
that are not there."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_programs.chips import CHIPS, Chip
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from frame_jax.models.attention import attention
from frame_jax.models.layers import document_bounds
from frame_jax.models.transformer import REMAT_POLICIES
from frame_jax.models.triton_attention import triton_attention
from frame_jax.parallel.sharding import AXES
from tests.gpu_compiler import gpus, needs_gpu_compiler
from tests.models.test_attention import reference

KERNELS = {"attention_forward": 1, "attention_query_grad": 1, "attention_key_grad": 1}
# Tiles are of 128 tokens and 64, for heads above 128 of 64 and 16.
MANY = [1, 1, 62, 64, 65, 63, 30, 3, 1, 94]
CASES = {
    "a key head a query head": ([[384], [128, 64, 192]], (2, 2, 64)),
    "heads that are padded": ([[1, 127, 128, 127, 1], MANY], (4, 2, 80)),
    "one key head, rows that are padded": ([[200], [72, 127, 1]], (4, 1, 128)),
    "wide heads": ([[60, 4, 1, 63]], (2, 1, 256)),
}


def make(documents: list[list[int]], heads: Sequence[int]) -> tuple[list[np.ndarray], np.ndarray]:
    """Random q, k, v and a derivative of the result, and ids of documents of these lengths, which
    fill each row, in no order; `heads` are query heads, key heads and numbers of a head."""
    random, (H, K, head_dim) = np.random.default_rng(0), heads
    B, T = len(documents), sum(documents[0])
    shapes = [(B, T, n, head_dim) for n in (H, K, K, H)]
    ids = [np.repeat(random.permutation(len(row)) - 2, row) for row in documents]
    return [random.normal(size=shape) for shape in shapes], np.array(ids, np.int32)


@jax.jit
def value_and_derivatives(
    q: jax.Array, k: jax.Array, v: jax.Array, grad: jax.Array, ids: jax.Array
) -> tuple[jax.Array, ...]:
    mixed, pull = jax.vjp(lambda *x: triton_attention(*x, ids), q, k, v)
    return mixed, *pull(grad)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "dtype", "limit"),
    [*((case, "float32", 1e-5) for case in CASES), ("heads that are padded", "bfloat16", 0.02)],
)
def test_agrees_with_float64(case: str, dtype: str, limit: float) -> None:
    (q, k, v, grad), ids = make(*CASES[case])
    actual = value_and_derivatives(*(jnp.asarray(x, dtype) for x in (q, k, v, grad)), ids)
    for ours, exact in zip(actual, reference(q, k, v, ids, grad), strict=True):
        assert ours.dtype == dtype
        assert np.max(np.abs(np.asarray(ours, np.float64) - exact)) < limit * np.max(np.abs(exact))


@pytest.mark.slow
def test_tiles_of_other_documents_are_not_visited() -> None:
    """Of what a tile visits, zero weights make not-a-number of not-a-number."""
    inputs, ids = make([[128, 256, 128]], (2, 1, 16))
    other = np.s_[:, 128:384]
    poisoned = [x.copy() for x in inputs]
    for x in poisoned:
        x[other] = np.nan
    clean, found = (
        value_and_derivatives(*(jnp.asarray(x, jnp.float32) for x in arrays), ids)
        for arrays in (inputs, poisoned)
    )
    for ours, exact in zip(found, clean, strict=True):
        assert np.isnan(ours[other]).any()
        np.testing.assert_array_equal(np.delete(ours, other[1], 1), np.delete(exact, other[1], 1))


def test_bounds_are_those_of_documents_whatever_their_ids() -> None:
    starts, ends = document_bounds(jnp.array([[7, 7, 0, 3, 3, 3], [0, 0, 0, 0, 0, 0]]))
    assert starts.tolist() == [[0, 0, 2, 3, 3, 3], [0] * 6]
    assert ends.tolist() == [[2, 2, 3, 6, 6, 6], [6] * 6]


def compiled_text(chip: Chip, head_dim: int, length: int) -> str:
    """The gradient of `attention` on two such chips under remat `minimal`, compiled."""
    auto = (AxisType.Auto,) * len(AXES)
    mesh = Mesh(np.array(gpus(chip, 2)).reshape(1, 1, 2, 1, 1), AXES, axis_types=auto)
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    q, k = (
        jax.ShapeDtypeStruct((4, length, heads, head_dim), jnp.bfloat16, sharding=rows)
        for heads in (24, 8)
    )
    ids = jax.ShapeDtypeStruct((4, length), jnp.int32, sharding=rows)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        layer = jax.checkpoint(attention, policy=REMAT_POLICIES["minimal"])
        return layer(q, k, v, ids).astype(jnp.float32).sum()

    with (
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
        pytest.warns(UserWarning, match="through Triton"),
    ):
        lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(q, k, k, ids)
    return lowered.compile().as_text()


@needs_gpu_compiler
@pytest.mark.parametrize(("chip", "head_dim"), [("a100", 128), ("h100", 100), ("b200", 100)])
def test_compiled_each_kernel_runs_once_without_a_mask(chip: str, head_dim: int) -> None:
    text = compiled_text(CHIPS[chip], head_dim, 4096)
    assert Counter(re.findall(r'name = "(\w+)"', text)) == KERNELS
    product = 2 * 4096 * 4096 * 24 * 128  # one of [T, head_dim] and [head_dim, T], causal, 2 rows
    flops = sorted(int(n) for n in re.findall(r"22flops\\22: \\22(\d+)", text))
    assert flops == [2 * product, 2 * product, 3 * product]
    assert not re.search(r"\[[\d,]*4096,4096\]", text)


@needs_gpu_compiler
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_kernels_fit_in_the_smallest_memory_on_a_chip(head_dim: int) -> None:
    """Of chips between the A100 and the H100, such as L4, L40S and RTX 4090."""
    small = dataclasses.replace(CHIPS["a100"], shared=100 * 1024)
    text = compiled_text(small, head_dim, 1024)
    assert Counter(re.findall(r'name = "(\w+)"', text)) == KERNELS
