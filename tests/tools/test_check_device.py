"""The check of a device, on this one: it passes, and a kernel that is wrong does not."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frame_jax.models import attention

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


def test_a_kernel_without_its_causal_mask_is_found(tool: ModuleType, monkeypatch) -> None:
    def attention(q: jax.Array, k: jax.Array, v: jax.Array, ids: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(
            q, k, v, mask=ids[:, None, :, None] == ids[:, None, None]
        )

    monkeypatch.setattr(tool, "attention", attention)
    assert tool.attention_error(16, 64, "float32") > 100 * tool.LIMITS["float32"]


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
    monkeypatch.setattr(tool, "attention_error", lambda *_: 0.0)
    monkeypatch.setattr(tool, "grouped_error", lambda *_: float("nan"))
    monkeypatch.setattr(tool, "ssd_error", lambda *_: 0.0)
    found = {line["check"]: line["ok"] for line in tool.run_group("kernels", True)}
    assert not found["cross entropy, float32"] and found["ssd, float32"]
    assert not found["grouped product, float32"]


def test_a_step_that_differs_from_the_cpus_is_found(tool: ModuleType, monkeypatch) -> None:
    factors = iter([1, 1.001] * 3)

    def loss_and_gradients(*_: Any) -> tuple[float, dict[str, np.ndarray]]:
        return 2.0, {"w": np.full(3, next(factors))}

    monkeypatch.setattr(tool, "loss_and_gradients", loss_and_gradients)
    assert [line["ok"] for line in tool.run_group("step", True)] == [True, False, False]


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
