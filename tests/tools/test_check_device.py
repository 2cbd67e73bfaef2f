"""The check of a device, on this one: it passes, and a kernel that is wrong does not."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frame_jax.config.file import load
from frame_jax.models import attention, grouped_product, mixer_mamba2
from frame_jax.models.flops import active_parameter_count, training_flops_per_token

TOOL = Path(__file__).parents[2] / "tools" / "check_device.py"


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("check_device", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_device"] = module  # where its dataclasses look for their types
    spec.loader.exec_module(module)
    yield module
    del sys.modules["check_device"]


@pytest.mark.slow
@pytest.mark.parametrize("group", ["kernels", "scoring", "resume"])
def test_this_device_is_right(tool: ModuleType, group: str) -> None:
    lines = list(tool.run_group(group, True))
    assert lines and all(line["ok"] for line in lines), lines
    assert all(line.keys() >= {"check", "ok", "value", "limit", "seconds"} for line in lines)
    assert all(0 <= line["value"] <= line["limit"] for line in lines)
    assert len({line["check"] for line in lines}) == len(lines)
    assert all(line.get("kernels", {}) == {} for line in lines)  # there are none for a CPU


def test_a_kernel_without_its_causal_mask_is_found(tool: ModuleType, monkeypatch) -> None:
    def attention(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(
            q, k, v, mask=ids[:, None, :, None] == ids[:, None, None]
        )

    monkeypatch.setattr(tool, "attention", attention)
    found = tool.compare_attention(16, [[20, 44]], "float32")
    assert found.error > 100 * tool.LIMITS["float32"]


def test_one_row_without_its_experts_product_is_found(tool: ModuleType, monkeypatch) -> None:
    """The last of hundreds, in a tile that is not full."""
    whole = tool.grouped_matmul

    def grouped_matmul(x: jax.Array, w: jax.Array, tiles: jax.Array) -> jax.Array:
        last = jnp.max(jnp.where(jnp.any(x != 0, axis=1), jnp.arange(len(x)), 0))
        return whole(x, w, tiles).at[last].set(0)

    monkeypatch.setattr(tool, "grouped_matmul", grouped_matmul)
    chosen = tool.choices(64)["uneven tails"]
    assert tool.compare_grouped(chosen, "bfloat16").error > 2 * tool.LIMITS["bfloat16"]


def test_a_wrong_grouped_product_fails_its_checks_alone(tool: ModuleType, monkeypatch) -> None:
    """Its value is right, and so is the derivative of one operand; the other's is too large."""
    whole = tool.grouped_matmul

    def grouped_matmul(x: jax.Array, w: jax.Array, tiles: jax.Array) -> jax.Array:
        return whole(x, 1.25 * w - 0.25 * jax.lax.stop_gradient(w), tiles)

    monkeypatch.setattr(tool, "grouped_matmul", grouped_matmul)
    monkeypatch.setattr(tool, "LIMITS", {"bfloat16": tool.LIMITS["bfloat16"]})
    for name in ("attention", "ssd", "cross_entropy"):
        monkeypatch.setattr(tool, f"compare_{name}", lambda *_: tool.Comparison(0.0, {}))
    lines = list(tool.run_group("kernels", True))
    failed = [line["check"] for line in lines if not line["ok"]]
    assert failed == [f"grouped product, {name}, bfloat16" for name in tool.choices(128)]


def test_a_state_that_outlives_its_document_is_found(tool: ModuleType, monkeypatch) -> None:
    whole = tool.ssd

    def ssd(*inputs: jax.Array) -> jax.Array:
        *others, positions, chunk = inputs
        return whole(*others, jnp.arange(positions.shape[1])[None], chunk)

    monkeypatch.setattr(tool, "ssd", ssd)
    assert tool.compare_ssd(16, 8, [8, 4], "bfloat16").error > 2 * tool.LIMITS["bfloat16"]


def test_scores_that_depend_on_the_neighbours_are_found(tool: ModuleType, monkeypatch) -> None:
    whole = attention.attention
    monkeypatch.setattr(
        attention, "attention", lambda q, k, v, ids: whole(q, k, v, jnp.zeros_like(ids))
    )
    monkeypatch.setattr(tool, "SCORE_LIMITS", {"bfloat16": 1e-3})
    assert [line["ok"] for line in tool.run_group("scoring", True)] == [False]


def test_a_wrong_derivative_is_found(tool: ModuleType, monkeypatch) -> None:
    whole = tool.cross_entropy

    def cross_entropy(hidden: jax.Array, *others: Any) -> tuple[jax.Array, jax.Array]:
        sums = whole(jax.lax.stop_gradient(hidden), *others)
        return sums[0] + 0.9 * (whole(hidden, *others)[0] - sums[0]), sums[1]

    monkeypatch.setattr(tool, "cross_entropy", cross_entropy)
    for name, error in {"attention": 0.0, "grouped": float("nan"), "ssd": 0.0}.items():
        found = tool.Comparison(error, {})
        monkeypatch.setattr(tool, f"compare_{name}", lambda *_, found=found: found)
    found = {line["check"]: line["ok"] for line in tool.run_group("kernels", True)}
    assert not found["cross entropy, float32"] and found["ssd, uneven tail, float32"]
    assert not found["grouped product, uneven tails, float32"]


def test_a_step_that_differs_from_the_cpus_is_found(tool: ModuleType, monkeypatch) -> None:
    """The same pair of numbers is right in bfloat16 and wrong in float32; NaN is wrong."""
    factors = iter([1, 1.001] * 4 + [1, float("nan")] * 2)

    def loss_and_gradients(*_: Any) -> tuple[tuple[float, dict[str, np.ndarray]], dict[str, int]]:
        return (2.0, {"w": np.full(3, next(factors))}), {"a_kernel": 2}

    monkeypatch.setattr(tool, "loss_and_gradients", loss_and_gradients)
    lines = list(tool.run_group("step", True))
    kinds = [line["check"].removeprefix("step against the CPU, ") for line in lines]
    assert kinds[::2] == [f"{kind}, bfloat16" for kind in ("dense", "experts", "hybrid")]
    assert [line["ok"] for line in lines] == [True, False] * 2 + [False] * 2
    assert all(line["kernels"] == {"a_kernel": 2} for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "module", "name"),
    [("experts", grouped_product, "grouped_matmul"), ("hybrid", mixer_mamba2, "ssd")],
)
def test_a_step_with_a_wrong_derivative_differs(
    tool: ModuleType, monkeypatch, kind: str, module: ModuleType, name: str
) -> None:
    """It is a quarter too large on the device, where the kernel's value is right."""
    right, step_of, steps = getattr(module, name), tool.loss_and_gradients, []

    def wrong(x: jax.Array, *others: Any) -> jax.Array:
        return right(x + 0.25 * (x - jax.lax.stop_gradient(x)), *others)

    def loss_and_gradients(*arguments: Any) -> Any:
        steps.append(arguments)
        jax.clear_caches()
        monkeypatch.setattr(module, name, wrong if len(steps) == 1 else right)
        return step_of(*arguments)

    monkeypatch.setattr(tool, "loss_and_gradients", loss_and_gradients)
    worst, _ = tool.compare_step(tool.tiny("bfloat16", kind), tool.token_rows(2, 64, 512))
    assert worst > 2 * tool.STEP_LIMITS["bfloat16"]


def test_an_error_is_a_finding(tool: ModuleType, monkeypatch) -> None:
    monkeypatch.setitem(tool.GROUPS, "resume", (lambda small: 1 / 0, 1))
    (line,) = tool.run_group("resume", True)
    assert not line["ok"] and "ZeroDivisionError" in line["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "seconds", "failures"), [("0", 60, 0), ("time.sleep(60)", 8, 1), ("1 / 0", 60, 1)]
)
def test_a_group_that_fails_or_hangs_fails_the_whole(
    tool: ModuleType, monkeypatch, capsys, tmp_path: Path, code: str, seconds: int, failures: int
) -> None:
    line = {"check": "x", "ok": True, "value": 2.0, "limit": None, "seconds": 0}
    other = tmp_path / "other.py"
    other.write_text(f"import time\nprint({json.dumps(json.dumps(line))}, flush=True)\n{code}\n")
    monkeypatch.setattr(tool, "__file__", str(other))
    monkeypatch.setitem(tool.GROUPS, "step", (tool.step, seconds))
    assert tool.main(["--only", "step"]) == failures
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert lines[0] == line and len(lines) == 1 + failures
    assert all(not each["ok"] and each["error"] for each in lines[1:])


def test_the_groups_fit_into_ten_minutes(tool: ModuleType) -> None:
    assert sum(seconds for _, seconds in tool.GROUPS.values()) == tool.TOTAL_SECONDS < 600


def test_what_a_group_leaves_of_its_time_is_for_those_after_it(
    tool: ModuleType, monkeypatch, capsys
) -> None:
    now, given = [0.0], []

    def watch(name: str, size: list[str], seconds: float) -> Iterator[dict[str, Any]]:
        given.append(seconds)
        now[0] += 5
        yield {"check": name, "ok": True, "value": 1.0}

    monkeypatch.setattr(tool, "watch", watch)
    monkeypatch.setattr(tool.time, "monotonic", lambda: now[0])
    assert tool.main(["--only", "kernels", "resume", "peer-experts"]) == 0
    shares = [tool.GROUPS[name][1] for name in ("kernels", "resume", "peer-experts")]
    assert given == [shares[0], sum(shares[:2]) - 5, sum(shares) - 10]


def test_a_peer_is_compared_by_the_device(tool: ModuleType, monkeypatch, capsys) -> None:
    """Ours, on all devices of the host; theirs, on one of them."""
    values = {"train experts": (800.0, 8), "peer train experts": (50.0, 1)}

    def watch(*_: Any) -> Iterator[dict[str, Any]]:
        for check, (value, devices) in values.items():
            yield {"check": check, "ok": True, "value": value, "devices": devices}
        yield {"check": "peer score experts", "ok": True, "value": 1.0, "devices": 1}

    monkeypatch.setattr(tool, "watch", watch)
    assert tool.main(["--only", "peer-experts"]) == 0
    ours, theirs, alone = map(json.loads, capsys.readouterr().out.splitlines())
    assert theirs["ratio"] == 2 and "ratio" not in ours and "ratio" not in alone


def test_kernels_are_named_as_their_makers_name_them(tool: ModuleType) -> None:
    """In lines as the compilers write them: Triton and Mosaic through Pallas, cuDNN, a TPU's."""
    pallas = "jit(f)/while/body/grouped_product/pallas_call"
    calls = [
        ("pallas_call.1", "__gpu$xla.gpu.triton", pallas),
        (
            "ROOT %pallas_call.17",
            "__gpu$xla.gpu.triton",
            "jit(f)/transpose(jvp(grouped_product))/pallas_call",
        ),
        ("fwd.5", "__cudnn$fmhaSoftmax", "jit(f)/while/body/fwd"),
        ("mine.3", "mosaic_gpu_v2", "jit(f)/body/mpmd_map"),
        ("splash_mha_dq.1", "tpu_custom_call", ""),
        ("space", "AllocateBuffer", ""),
    ]
    program = "".join(
        f"  {'' if name.startswith('ROOT') else '%'}{name} = (bf16[8]{{0}}, u8[0]{{0}}) "
        f'custom-call(%x), custom_call_target="{target}", api_version=API_VERSION_TYPED_FFI, '
        f'metadata={{op_name="{path}" stack_frame_id=2}}, backend_config={{ir = "a"}}\n'
        for name, target, path in calls
    )
    kernels = {"__cudnn$fmhaSoftmax": 1, "grouped_product": 2, "mine": 1, "splash_mha_dq": 1}
    assert tool.kernel_names(program) == kernels and tool.kernel_names(None) == {}


@pytest.mark.slow
@pytest.mark.parametrize("group", ["train-experts", "train-hybrid", "score-experts"])
def test_speeds_are_of_the_whole_step(tool: ModuleType, group: str) -> None:
    line, *others = tool.run_group(group, True)
    assert line["ok"] and line["value"] > 0 and line["unit"] == "tokens/s", line
    assert line["per_device_batch_size"] == 2 and line["devices"] == 1
    if group.startswith("train"):
        assert line["compiler_gib"] > 0 and line["kernels"] == {}
        assert [other["skipped"] for other in others] == ["not for tiny shapes"]


@pytest.mark.parametrize(("name", "active"), [("experts", 537), ("hybrid", 1009)])
def test_models_are_those_of_the_configs(tool: ModuleType, name: str, active: int) -> None:
    """Millions of parameters that a token meets, and layers that are the configs' own."""
    shape = tool.Shape.of(name, False)
    assert round(active_parameter_count(shape.decoder) / 1e6) == active
    whole = load(shape.settings[1]).pretrain.model
    assert replace(shape.decoder.config, num_layers=whole.num_layers) == whole
    assert set(shape.decoder.config.layer_specs) == set(whole.layer_specs)


def test_mfu_is_of_the_models_flops_and_of_all_devices(tool: ModuleType, monkeypatch) -> None:
    monkeypatch.setattr(
        tool.jax, "devices", lambda: [SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")]
    )
    shape = tool.Shape.of("experts", False)
    found = shape.speed(10_000.0, training_flops_per_token, 8)
    flops = 10_000 * training_flops_per_token(shape.decoder, 4096)
    assert found["mfu"] == pytest.approx(flops / (989e12 * 8))
    assert 0 < found["mfu"] < 10_000 * 6 * 0.7e9 / (989e12 * 8)  # a third of all parameters


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "model", "experts"),
    [
        ("experts", "OlmoeForCausalLM", "grouped_mm"),
        ("hybrid", "GraniteMoeHybridForCausalLM", "none"),
    ],
)
def test_peers_are_the_same_model_in_transformers(
    tool: ModuleType, monkeypatch, request, name: str, model: str, experts: str
) -> None:
    """With the plain form of Mamba-2, which is all that a CPU has."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    pytest.importorskip("transformers.integrations.moe")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    request.addfinalizer(lambda: torch.set_num_threads(threads))

    def one_step(step: Any, tokens: int, seconds: float) -> float:
        step()
        return float(tokens)

    monkeypatch.setattr(tool, "rate", one_step)
    monkeypatch.setitem(tool.PEERS, "hybrid", ())
    build, made = tool.peer_model, []

    def peer_model(*given: Any) -> Any:
        made.append(build(*given))
        return made[-1]

    monkeypatch.setattr(tool, "peer_model", peer_model)
    lines = list(tool.run_group(f"peer-{name}", True))
    assert all(line["ok"] and line["value"] > 0 for line in lines), lines
    assert all(line["peer"]["model"] == model for line in lines)
    assert all(line["peer"].get("experts", "none") == experts for line in lines)
    parameters = tool.tiny("bfloat16", name).parameter_count()
    assert {sum(x.numel() for x in each.parameters()) for each in made} == {parameters}


def test_a_peer_without_its_kernels_is_skipped_with_the_reason(
    tool: ModuleType, monkeypatch
) -> None:
    monkeypatch.setitem(tool.PEERS, "hybrid", ("json", "no_such_kernels"))
    (line,) = tool.run_group("peer-hybrid", True)
    assert line["ok"] and line["value"] is None
    assert "no_such_kernels (No module" in line["skipped"] and "json" not in line["skipped"]


def test_speeds_are_tokens_over_the_median_step(tool: ModuleType, monkeypatch) -> None:
    clock = iter(np.cumsum([0, 1, 0, 4, 0, 2]).tolist())
    monkeypatch.setattr(tool.time, "perf_counter", lambda: next(clock))
    assert tool.rate(lambda: None, 100, 0) == pytest.approx(50)


@pytest.mark.parametrize(
    ("kind", "count", "name"),
    [
        ("NVIDIA H100 80GB HBM3", 8, "h100:8"),
        ("TPU v5", 4, "v5p:2x2x1"),
        ("TPU v6 lite", 8, "v6e:2x4"),
        ("cpu", 1, None),
    ],
)
def test_devices_are_named_as_the_compiler_tool_names_them(
    tool: ModuleType, kind: str, count: int, name: str | None
) -> None:
    assert tool.topology(kind, count) == name
