"""How the check reads the compiler's seconds, what it has it compile, and what it says."""

import importlib.util
import runpy
from pathlib import Path
from typing import Any

import pytest

from frame_jax.config.file import load
from frame_jax.config.models import LayerSpec, ModelConfig
from frame_jax.errors import UserError
from frame_jax.models.flops import PEAK_FLOPS
from frame_jax.models.transformer import Decoder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the tool defines."""
    for name in ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "")  # the tool sets them; this puts them back
    return runpy.run_path(str(ROOT / "tools" / "compile_ahead.py"))


@pytest.mark.parametrize(
    ("reported", "seconds", "unknown"),
    [(0.875, 0.875, 0), (1.5, 1.5, 0), (-35.9677887, 0.0322113, 36), (-0.25, 0.75, 1)],
)
def test_an_operation_without_an_estimate_is_counted_and_costs_nothing(
    reported: float, seconds: float, unknown: int, tool: dict[str, Any]
) -> None:
    assert tool["split_cost"](reported) == (pytest.approx(seconds), unknown)


def test_every_tpu_with_a_known_peak_has_a_known_memory(tool: dict[str, Any]) -> None:
    assert {kind for kind in PEAK_FLOPS if kind.startswith("TPU")} == set(tool["HBM_GIB"])


class Priced:
    """A stand-in for the compiler: it counts the body of every loop once."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def cost_analysis(self) -> dict[str, float]:
        return {"optimal_seconds": self.seconds}


def test_the_seconds_of_a_step_come_from_two_and_four_layers_of_each_kind(
    tool: dict[str, Any],
) -> None:
    """Prices by kind, a chunk of a Mamba-2 layer and a piece of the loss each counted once."""
    config = load(ROOT / "configs" / "frame_hybrid.yaml")
    mamba2, attention = LayerSpec("mamba2", "dense"), LayerSpec("attention", "dense")
    layer, chunk, piece, rest = {mamba2: 0.003, attention: 0.005}, 0.0001, 0.02, 0.01
    seen = []

    def compile_step(config: Any, mesh: Any, decoder: Decoder) -> Priced:
        assert decoder.unroll >= max(run.length for run in decoder.config.layer_groups)
        kinds, training = decoder.config.layer_specs, config.pretrain.training
        seen.append(kinds)
        rows = training.batch_size / 256  # of 4,096 tokens
        seconds = rest + sum(layer[kind] for kind in kinds)
        seconds += kinds.count(mamba2) * chunk * rows + piece * training.loss_chunk / 4096
        return Priced(seconds)

    class Mesh:
        shape = dict.fromkeys(("slice", "data", "expert", "tensor"), 1) | {"fsdp": 64}

    seconds, unknown = tool["estimate"](
        config, "train", Mesh(), [Decoder(config.pretrain.model, 512)], compile_step
    )
    # Four rows of 4,096 a device: 16 chunks of 256 tokens, and four pieces of the loss.
    whole = rest + 36 * (layer[mamba2] + 16 * chunk) + 4 * layer[attention] + 4 * piece
    assert (seconds, unknown) == (pytest.approx(whole), 0)
    assert max(map(len, seen)) == 6


def test_a_model_of_one_kind_is_made_shallow_as_it_is(tool: dict[str, Any]) -> None:
    decoder = Decoder(ModelConfig(num_layers=8), 512)
    shallow = tool["shallow"](decoder, {LayerSpec("attention", "dense"): 4})
    assert (
        shallow.config.layer_groups[0].length == shallow.unroll == 4 and shallow.config.repeats == 1
    )


@pytest.mark.parametrize(
    ("topology", "said"),
    [("h100:8x", "h100:HOSTSxGPUS"), ("h100:2x8x8", "h100:HOSTSxGPUS"), ("h300:8", "v5p:4x4x4")],
)
def test_a_topology_that_is_none_is_refused(topology: str, said: str, tool: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=said):
        tool["describe"](topology, 1)


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is not None, reason="the compiler is installed"
)
def test_a_compiler_that_is_not_installed_is_named(tool: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"pip install \"jax\[cuda13\]"):
        tool["describe"]("h100:8", 1)


def test_a_verdict_says_what_to_change(tool: dict[str, Any]) -> None:
    assert tool["fit"]("train", 30.0, 40.0)["spare_fraction"] == 0.25
    tight = tool["fit"]("train", 41.0, 40.0)
    assert not tight["fits"] and "training.remat" in tight["change"]
    assert "scoring.fsdp" in tool["fit"]("score", None, 40.0)["change"]
    answer = {"step": "train", "tokens_per_step": 10, "devices": 8, "device_kind": "a chip"}
    text = tool["table"](answer | {"mesh": {"fsdp": 8}, "hbm_gib_available": 40.0} | tight)
    assert "41.0 of 40.0 GiB a device: DOES NOT FIT" in text and "training.remat" in text
