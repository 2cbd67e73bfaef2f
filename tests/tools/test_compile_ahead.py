"""How the check reads the compiler's seconds, what it has it compile, and what it says."""

import dataclasses
import importlib.util
import re
import runpy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from frame_jax.config.file import load, parse
from frame_jax.config.models import ExpertsConfig, LayerSpec, Mamba2Config, ModelConfig
from frame_jax.config.scoring import TableConfig
from frame_jax.errors import UserError
from frame_jax.models.flops import PEAK_FLOPS
from frame_jax.models.transformer import Decoder
from frame_jax.scoring.scorer import Scorer
from tests.gpu_compiler import needs_gpu_compiler

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


@needs_gpu_compiler
def test_a_scoring_step_compiles(tool: dict[str, Any]) -> None:
    config = load(ROOT / "configs" / "quickstart.yaml")
    answer = tool["check"](config, "h100:1", "score", 1)
    assert answer["fits"] and len(answer["parameters"]) == 2
    assert answer["versions"]["jax"] == jax.__version__ and 0 < answer["upper_bound_mfu"] < 1


def test_the_scoring_step_is_compiled_as_the_scorer_runs_it(tool: dict[str, Any]) -> None:
    """Rows and types of parameters are those of a real scorer, here of a model of every kind."""
    config = load(ROOT / "configs" / "study_gpu.yaml")
    assert tool["scoring_shape"](config) == (32, 2048)
    model = ModelConfig(
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        layers=("mamba2+dense", "attention+experts"),
        experts=ExpertsConfig(num_experts=4, num_experts_per_token=2, intermediate_size=32),
        mamba2=Mamba2Config(num_heads=4, head_dim=16, state_size=8, chunk_size=8),
    )
    decoder = Decoder(model, 64)
    scorer = Scorer([(decoder, decoder.init(jax.random.key(0)))], config.scoring)
    bits = {np.dtype("uint16"): jax.numpy.dtype("bfloat16")}  # as which a CPU keeps it
    scored = jax.tree.map(lambda x: bits.get(x.dtype, x.dtype), scorer._params[0])
    kept = jax.tree.map(
        lambda shape, axes: tool["kept"](decoder, shape, axes).dtype,
        decoder.shapes(),
        decoder.axes(),
    )
    assert kept == scored
    assert scorer.row_length == 2048


def test_models_that_score_are_named_or_refused(tool: dict[str, Any]) -> None:
    config = load(ROOT / "configs" / "continue_gpu.yaml")  # imported, but its shapes are written
    assert [d.config.num_layers for d in tool["references"](config)] == [30, 32]
    exact = dataclasses.replace(config.scoring, compute_dtype="float32")
    decoders = tool["references"](dataclasses.replace(config, scoring=exact))
    assert {decoder.compute_dtype for decoder in decoders} == {"float32"}
    table = dataclasses.replace(config.scoring, table=TableConfig(path="scores.parquet", ppl="ppl"))
    with pytest.raises(UserError, match=r"scoring\.table"):
        tool["references"](dataclasses.replace(config, scoring=table))
    with pytest.raises(UserError, match=r"reference\.weak\.model does not say its shape"):
        tool["references"](load(ROOT / "configs" / "score_only.yaml"))


class Foreseen:
    """A stand-in for a compiled program that needs 2 GiB."""

    argument_size_in_bytes, output_size_in_bytes = 2**31, 0
    temp_size_in_bytes = generated_code_size_in_bytes = alias_size_in_bytes = 0

    def memory_analysis(self) -> "Foreseen":
        return self


def test_a_product_that_gathers_in_a_loop_leaves_no_estimate(
    tool: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler counts one turn of its loop, which would make the seconds too few."""

    class Device:
        device_kind, platform, slice_index = "TPU v5 lite", "tpu", 0

    class Mesh:
        shape, size = {"fsdp": 16}, 16

    inside = tool["check"].__globals__
    program = "%{} (x: f32[8]) -> f32[8] {{\n  ROOT %x = f32[8] parameter(0)\n}}\n\nENTRY "
    monkeypatch.setitem(inside, "describe", lambda topology, slices: ([Device()], None, 0))
    monkeypatch.setitem(inside, "make_mesh", lambda parallel, devices: Mesh())
    monkeypatch.setitem(inside, "estimate", lambda *_: (0.5, 0))
    config = load(ROOT / "configs" / "study_pod.yaml")
    answers = []
    for name in ("region", "wide.windowed_dot_general_body_ag"):
        text = (program + program.removesuffix("\n\nENTRY ")).format(name, "main")
        monkeypatch.setitem(inside, "compile_with_text", lambda _, text=text: (Foreseen(), text))
        answers.append(tool["check"](config, "v5e:4x4", "train", 1))
    assert answers[0]["estimated_step_seconds"] == 0.5
    assert "estimated_step_seconds" not in answers[1]
    assert "no estimate: " in tool["table"](answers[1])
    quick = tool["check"](config, "v5e:4x4", "train", 1, seconds_too=False)
    assert not {"estimated_step_seconds", "no_estimate"} & set(quick) and quick["fits"]


@pytest.fixture
def table_tool() -> dict[str, Any]:
    """What the tool that makes the table defines."""
    return runpy.run_path(str(ROOT / "tools" / "compile_table.py"))


def cells(page: str) -> list[list[str]]:
    """The rows of a page's table of compiled programs, without its two lines of heading."""
    table = page.partition("writes this table -->")[2].partition("<!-- end of the table -->")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_documented_table_has_the_rows_of_the_list(table_tool: dict[str, Any]) -> None:
    documented = cells((ROOT / "docs" / "pod.md").read_text())
    assert [row[:4] for row in documented] == [x.cells() for x in table_tool["PROGRAMS"]]


def test_every_program_of_the_list_is_a_config_that_is_read(table_tool: dict[str, Any]) -> None:
    for program in table_tool["PROGRAMS"]:
        overrides = [x for k, v in program.settings.items() for x in (f"--{k}", str(v))]
        config, _ = parse(["--config", str(ROOT / f"configs/{program.config}.yaml"), *overrides])
        training = config.pretrain.training
        for key, value in program.settings.items():
            assert getattr(training, key.removeprefix("pretrain.training.")) == value
    named = {program.config for program in table_tool["PROGRAMS"]}
    comments = {
        path.stem: re.findall(r"--topology (\S+)", path.read_text())
        for path in (ROOT / "configs").glob("*.yaml")
    }
    for config, targets in comments.items():
        listed = {x.topology for x in table_tool["PROGRAMS"] if x.config == config}
        assert set(targets) <= listed
    assert named >= {config for config, targets in comments.items() if targets}


# What `compile_ahead.py --json` says of a GPU, of a TPU, and of what does not fit, shortened.
ANSWERS = """
{"program": {"config": "frame_3b", "topology": "h100:8x8", "step": "train", "settings": {}, "estimate": false}, "answer": {"fits": true, "hbm_gib_per_device": 46.2, "spare_fraction": 0.221, "hbm_gib_available": 59.32, "collectives": {"all-gather": {"gib_received_per_device": 11.5, "fraction_beside_work": 1.0}, "reduce-scatter": {"gib_received_per_device": 12.0, "fraction_beside_work": 1.0}}, "lower_bound_step_seconds": 0.5132, "upper_bound_mfu": 0.69, "memory_bytes_per_step_per_device": 608019128516.0, "versions": {"jax": "0.10.2", "jax-cuda13-pjrt": "0.10.2"}}}
{"program": {"config": "frame_3b", "topology": "v5p:4x4x4", "step": "train", "settings": {}, "estimate": true}, "answer": {"fits": true, "hbm_gib_per_device": 46.5, "spare_fraction": 0.514, "hbm_gib_available": 95.74, "collectives": {}, "estimated_step_seconds": 0.8751, "estimated_mfu": 0.77, "versions": {"jax": "0.10.2", "libtpu": "0.0.40"}}}
{"program": {"config": "frame_1b", "topology": "a100:8", "step": "train", "settings": {"pretrain.training.remat": "minimal", "pretrain.training.gradient_accumulation_steps": 4}, "estimate": false}, "answer": {"fits": false, "hbm_gib_per_device": null, "hbm_gib_available": 59.4, "versions": {"jax": "0.10.2", "libtpu": "0.0.40"}}}
"""  # noqa: E501


def test_recorded_lines_make_the_table(table_tool: dict[str, Any], tmp_path: Path) -> None:
    results = tmp_path / "compiled.jsonl"
    results.write_text(ANSWERS.strip())
    recorded = table_tool["read_results"](results)
    programs = [program for program, _ in recorded]
    missing = table_tool["Program"]("frame_moe", "h100:8x8")
    page = table_tool["with_table"](
        f"before\n{table_tool['START']}\nold\n{table_tool['END']}\nafter\n",
        table_tool["markdown"]([*programs, missing], recorded),
    )
    slim = "`remat: minimal`, `gradient_accumulation_steps: 4`"
    assert cells(page) == [
        ["frame_3b", "train", "h100:8x8", "", "yes, 22% to spare", "46.2 of 59.3", "at least 0.513",
         "at most 69%", "23.5", "0.61"],
        ["frame_3b", "train", "v5p:4x4x4", "", "yes, 51% to spare", "46.5 of 95.7", "0.875", "77%",
         "0.0", ""],
        ["frame_1b", "train", "a100:8", slim, "no", "? of 59.4", "", "", "", ""],
        ["frame_moe", "train", "h100:8x8", "", "not compiled yet", "", "", "", "", ""],
    ]  # fmt: skip
    assert "Compiled with jax 0.10.2, jax-cuda13-pjrt 0.10.2, libtpu 0.0.40." in page
    assert page.startswith("before") and page.endswith("after\n") and "old" not in page


def test_what_is_compiled_is_not_compiled_again(
    table_tool: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that failed is no row of the results, and is tried again by the next command."""
    first, second, third = (table_tool["Program"](name, "h100:8") for name in "abc")
    answers = {"a": {"fits": True}, "b": {"error": "the compiler died"}}
    inside = table_tool["compile_missing"].__globals__
    monkeypatch.setitem(inside, "compile_one", lambda program: answers[program.config])
    path = tmp_path / "new" / "compiled.jsonl"
    assert not table_tool["compile_missing"]([first, second], path)
    assert table_tool["read_results"](path) == [(first, {"fits": True})]
    answers = {"b": {"fits": False}, "c": {"fits": True}}
    assert table_tool["compile_missing"]([first, second, third], path)
    assert table_tool["read_results"](path)[0][0] == first
    assert len(path.read_text().splitlines()) == 3


def test_a_compiler_that_dies_is_said(
    table_tool: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = table_tool["Program"]("absent", "h100:8")
    assert program.command()[-1] == "--no_estimate"
    answer = table_tool["compile_one"](program)
    assert set(answer) == {"error"} and "absent.yaml" in answer["error"]
