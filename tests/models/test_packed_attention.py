"""Attention by offsets: cuDNN's kernel cannot run here, so its contract stands in for it.

`forward` and `backward` compute one segment at a time from lengths and offsets, as cuDNN does, in
NumPy, and leave not-a-number wherever cuDNN promises nothing. What is ours is tested around them:
which segment is in which call, what becomes of the parts, the derivatives.
"""

from __future__ import annotations

import functools
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled_programs.chips import CHIPS
from compiled_programs.hlo_program import HloProgram
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from frame_jax.models import packed_attention as module
from frame_jax.models.attention import _kernel_for as kernel_for
from frame_jax.models.attention import attention, lean_attention
from frame_jax.models.transformer import REMAT_POLICIES
from frame_jax.models.triton_attention import triton_attention
from tests.gpu_compiler import gpus, needs_gpu_compiler
from tests.models.test_attention import HEAD, B, H, K, T, reference


def segment(call: module.KernelCall, place: int) -> tuple[int, int]:
    start = int(np.asarray(call.starts).reshape(-1)[place])
    return start, start + int(np.asarray(call.lengths).reshape(-1)[place])


def scores(q: np.ndarray, k: np.ndarray) -> np.ndarray:
    found = np.einsum("qhd,khd->hqk", q, np.repeat(k, H // K, 1)) / np.sqrt(HEAD)
    return np.where(np.tri(len(q), dtype=bool), found, -np.inf)


def forward(q: Any, k: Any, v: Any, call: module.KernelCall) -> tuple[np.ndarray, np.ndarray]:
    flat = [np.asarray(x, np.float64).reshape(B * T, -1, HEAD) for x in (q, k, v)]
    mixed = np.full((B * T, H, HEAD), np.nan, np.float32)
    places = call.lengths.size
    statistics = np.full((places, H, T), np.nan, np.float32)
    for place in range(places):
        start, stop = segment(call, place)
        queries, keys, values = (x[start:stop] for x in flat)
        if start < stop:
            found = scores(queries, keys)
            log_total = np.log(np.exp(found).sum(-1))
            statistics[place, :, : stop - start] = log_total
            weights = np.exp(found - log_total[..., None])
            values = np.repeat(values, H // K, 1)
            mixed[start:stop] = np.einsum("hqk,khd->qhd", weights, values)
    return mixed.reshape(B, T, H, HEAD), statistics


def backward(
    q: Any, k: Any, v: Any, statistics: Any, mixed: Any, grad: Any, call: module.KernelCall
) -> tuple[np.ndarray, ...]:
    flat = [np.asarray(x, np.float64).reshape(B * T, -1, HEAD) for x in (q, k, v, mixed, grad)]
    grads = [np.full((B * T, heads, HEAD), np.nan, np.float32) for heads in (H, K, K)]
    for place in range(call.lengths.size):
        start, stop = segment(call, place)
        queries, keys, values, out, by_out = (x[start:stop] for x in flat)
        log_total = np.asarray(statistics)[place, :, : stop - start]
        weights = np.exp(scores(queries, keys) - log_total[..., None])
        by_weight = np.einsum("qhd,khd->hqk", by_out, np.repeat(values, H // K, 1))
        inner = np.einsum("qhd,qhd->hq", out, by_out)[..., None]
        by_score = weights * (by_weight - inner) / np.sqrt(HEAD)
        of_query = np.einsum("hqk,khd->qhd", by_score, np.repeat(keys, H // K, 1))
        of_key = np.einsum("hqk,qhd->khd", by_score, queries)
        of_value = np.einsum("hqk,qhd->khd", weights, by_out)
        grouped = (stop - start, K, H // K, HEAD)
        of_key, of_value = (x.reshape(grouped).sum(2) for x in (of_key, of_value))
        for whole, part in zip(grads, (of_query, of_key, of_value), strict=True):
            whole[start:stop] = part
    return tuple(x.reshape(B, T, -1, HEAD) for x in grads)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stand-ins in the kernels' place; which were called."""
    called: list[str] = []

    def shapes(*arrays: tuple[tuple[int, ...], Any]) -> tuple[jax.ShapeDtypeStruct, ...]:
        return tuple(jax.ShapeDtypeStruct(*array) for array in arrays)

    def run_forward(q: Any, k: Any, v: Any, call: module.KernelCall) -> Any:
        statistics = (call.lengths.size, H, T), jnp.float32
        return jax.pure_callback(
            lambda *x: (called.append("forward"), forward(*x))[1],
            shapes((q.shape, q.dtype), statistics), q, k, v, call,
        )  # fmt: skip

    def run_backward(*x: Any) -> Any:
        return jax.pure_callback(
            lambda *x: (called.append("backward"), backward(*x))[1],
            shapes(*((y.shape, y.dtype) for y in x[:3])), *x,
        )  # fmt: skip

    monkeypatch.setattr(module, "forward_kernel", run_forward)
    monkeypatch.setattr(module, "backward_kernel", run_backward)
    return called


@pytest.mark.slow
@pytest.mark.parametrize(("places", "calls"), [(16, 1), (4, 3)])
def test_any_number_of_segments_agrees_with_float64(
    places: int, calls: int, kernels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEGMENT_SLOTS", places)
    random = np.random.default_rng(0)
    q, grad = random.normal(size=(2, B, T, H, HEAD))
    k, v = random.normal(size=(2, B, T, K, HEAD))
    ids = np.zeros((B, T), np.int32)  # one row is one document, the other nine, two of one token
    ids[0, [1, 2, 50, 90, 128, 129, 300, 383]] = 1
    ids[0] = ids[0].cumsum() - 3
    expected = reference(q, k, v, ids, grad)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return module.packed_attention(q, k, v, jnp.asarray(ids))

    mixed, pull = jax.vjp(attend, *(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    for ours, theirs in zip((mixed, *pull(jnp.asarray(grad, jnp.float32))), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=2e-4)
    assert kernels == ["forward"] * calls + ["backward"] * calls


@pytest.mark.parametrize(
    ("kind", "dtype", "width", "said"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 128, "Hopper"),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 128, "Hopper"),
        ("NVIDIA H100 80GB HBM3", "float32", 128, "bfloat16, not float32"),
        ("NVIDIA H200", "bfloat16", 260, "not 260"),
        ("NVIDIA B200", "bfloat16", 256, None),
        ("NVIDIA GH200 480GB", "bfloat16", 64, None),
    ],
)
def test_an_obstacle_is_named(
    kind: str, dtype: str, width: int, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "device_kind", lambda: kind)
    q = jax.ShapeDtypeStruct((2, 256, 4, width), jnp.dtype(dtype))
    found = module.unsupported_reason(q, q)
    assert found is None if said is None else said in str(found)


def test_another_version_of_jax_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "device_kind", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(module, "_library", lambda: object())
    monkeypatch.setattr(module, "_missing", functools.cache(module._missing.__wrapped__))
    q = jax.ShapeDtypeStruct((2, 256, 4, 64), jnp.bfloat16)
    assert "other operations for cuDNN" in str(module.unsupported_reason(q, q))


def test_the_fallback_is_chosen_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frame_jax.models.attention.platform", lambda: "gpu")
    monkeypatch.setattr(module, "device_kind", lambda: "NVIDIA H100 80GB HBM3")
    q = jax.ShapeDtypeStruct((2, 256, 4, 128), jnp.bfloat16)
    assert kernel_for(q, q) is module.packed_attention
    odd = q.update(shape=(2, 256, 4, 100))
    with pytest.warns(UserWarning, match="kernels through Triton: .*not 100"):
        assert kernel_for(odd, odd) is triton_attention
    monkeypatch.setattr(module, "device_kind", lambda: "NVIDIA A100-SXM4-80GB")
    with pytest.warns(UserWarning, match="kernels through Triton: .*Hopper or Blackwell"):
        assert kernel_for(q, q) is triton_attention
    with pytest.warns(UserWarning, match="plain XLA: .*128 in float32"):
        assert kernel_for(q.update(dtype=jnp.float32), q) is lean_attention
    with pytest.warns(UserWarning, match="plain XLA: .*up to 256 numbers .*512 in bfloat16"):
        assert kernel_for(q.update(shape=(2, 256, 4, 512)), q) is lean_attention
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    monkeypatch.delattr("jax.experimental.pallas.triton", raising=False)
    with pytest.warns(UserWarning, match="plain XLA: .*has no Triton"):
        assert kernel_for(q, q) is lean_attention


@needs_gpu_compiler
def test_compiled_for_an_h100_one_kernel_runs_each_way_without_a_mask() -> None:
    """Under remat `minimal`, on two devices; memory grows as the row does."""
    from frame_jax.parallel.sharding import AXES

    auto = (AxisType.Auto,) * len(AXES)
    mesh = Mesh(np.array(gpus(CHIPS["h100"], 2)).reshape(1, 1, 2, 1, 1), AXES, axis_types=auto)
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    held = []
    for length in (4096, 8192):
        q, k = (
            jax.ShapeDtypeStruct((4, length, heads, 128), jnp.bfloat16, sharding=rows)
            for heads in (24, 8)
        )
        ids = jax.ShapeDtypeStruct((4, length), jnp.int32, sharding=rows)

        def loss(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
            layer = jax.checkpoint(attention, policy=REMAT_POLICIES["minimal"])
            return layer(q, k, v, ids).astype(jnp.float32).sum()

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(q, k, k, ids)
        compiled = lowered.compile()
        program = HloProgram(compiled.as_text())
        assert program.kernels() == {"__cudnn$fmhaSoftmax": 1, "__cudnn$fmhaSoftmaxBackward": 1}
        assert not re.search(rf"\[[\d,]*{length},{length}\]", compiled.as_text())
        held.append(compiled.memory_analysis().temp_size_in_bytes)
    assert held[1] < 2.1 * held[0]
