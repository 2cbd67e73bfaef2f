"""Plans: what a run costs, how far it has come, and what would be refused."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import pytest
from rich.console import Console

from frame_jax.config.corpus import CorpusConfig, SourceConfig
from frame_jax.config.curriculum import CurriculumConfig, StageConfig
from frame_jax.config.file import load
from frame_jax.config.models import ExpertsConfig, ModelConfig
from frame_jax.config.run import RunConfig
from frame_jax.config.training import (
    OptimizerConfig,
    ReferenceConfig,
    ReferenceModelConfig,
    TrainingConfig,
)
from frame_jax.corpus.parts import corpus_signature
from frame_jax.curriculum.stages import DataSchedule, resolve_curriculum
from frame_jax.errors import UserError
from frame_jax.main import main
from frame_jax.models.transformer import Decoder
from frame_jax.planning.costs import Corpus, cost_table, training_cost
from frame_jax.run import markers, phases
from frame_jax.run.directory import RunDirectory, write_json
from frame_jax.run.trial_record import TrialRecord, write_trial_record
from frame_jax.training.optimizer import make_optimizer
from tests.integration.small_run import settings, write_config, write_corpus

CORPUS = Corpus(reference=1_000_000, train=8_000_000, held_out=500_000, source="a test")
CHECKPOINT = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 10,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
}
# Matrices of a layer: four of 10 x 10 and three of 10 x 20; two tables of 100 x 10; norms.
PARAMETERS = 3 * (400 + 600 + 20) + 2000 + 10
SCORING = 8_500_000 * (2 * (3 * 1000 + 1000) + 3 * 4 * 10 * 1024 / 2)


def costs(
    weak: Path | None = None, model: ModelConfig | None = None
) -> tuple[dict[str, list[str]], str]:
    """Lines of the table by what they are about, and all of its text."""
    checkpoint = None if weak is None else str(weak)
    reference = ReferenceConfig(
        weak=ReferenceModelConfig(model=model or ModelConfig(), checkpoint=checkpoint)
    )
    config = RunConfig(
        run_directory="nowhere",
        corpus=CorpusConfig([SourceConfig("python_library")]),
        reference=reference,
    )
    console = Console(width=300)
    with console.capture() as capture:
        left = {"reference-weak": 1.0, "reference-strong": 1.0, "score": 1.0}
        console.print(cost_table(config, CORPUS, {}, left, None))
    text = capture.get()
    lines = [[quadrant.strip() for quadrant in line.split("│")[1:-1]] for line in text.splitlines()]
    return {line[0]: line[1:] for line in lines if line}, text


def test_an_imported_model_costs_no_training_and_is_scored_at_its_own_size(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CHECKPOINT))
    lines, text = costs(weak=tmp_path)
    assert "reference weak" not in lines
    parameters, active, _, _, tokens, flops, _ = lines["scoring, weak"]
    assert parameters == active == f"{PARAMETERS:,}"
    assert (tokens, flops) == ("8,500,000", f"{SCORING:.2e}")
    assert f"reference.weak is imported; its shape is from {tmp_path / 'config.json'}" in text
    assert float(lines["reference strong"][5]) > 0 and "reference.strong" not in text


def test_a_checkpoint_that_is_not_there_yet_is_assumed_and_said_to_be(tmp_path: Path) -> None:
    lines, text = costs(weak=tmp_path)
    own, _ = costs()
    assert lines["scoring, weak"][0] == own["scoring, weak"][0]
    assert "reference weak" not in lines
    assert "config.json is not there; its shape is assumed to be reference.weak.model" in text
    assert own["reference weak"][4] != "0"


def test_a_checkpoint_that_cannot_be_scored_is_refused_by_the_plan(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CHECKPOINT | {"model_type": "gpt2"}))
    with pytest.raises(UserError, match="model_type 'gpt2'"):
        costs(weak=tmp_path)
    short = CHECKPOINT | {"max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(short))
    with pytest.raises(UserError, match="at most 512 tokens"):
        costs(weak=tmp_path)


def test_experts_take_memory_and_only_those_of_a_token_take_time() -> None:
    dense = ModelConfig(hidden_size=32, intermediate_size=24, num_heads=2, num_layers=2)
    experts = ExpertsConfig(num_experts=64, num_experts_per_token=2, intermediate_size=12)
    mixture = dataclasses.replace(dense, layers=("attention+experts",), experts=experts)
    (lines, text), (plain, silent) = costs(model=mixture), costs(model=dense)
    idle, router = 2 * 62 * 3 * 32 * 12, 2 * 32 * 64
    for work in ("reference weak", "scoring, weak"):
        parameters, active = (int(quadrant.replace(",", "")) for quadrant in lines[work][:2])
        assert active == int(plain[work][0].replace(",", "")) + router
        assert parameters == active + idle
    assert "of experts its own" in text and "of experts its own" not in silent
    expert_groups, without = (float(table["scoring, weak"][5]) for table in (lines, plain))
    assert expert_groups == pytest.approx(without, rel=0.02)  # all experts would add a seventh


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"first_moment_dtype": "bfloat16"},
        {"kind": "muon"},
    ],
    ids=str,
)
def test_memory_is_that_of_the_arrays_that_training_makes(settings: dict) -> None:
    model = ModelConfig(hidden_size=32, intermediate_size=96, num_layers=3, num_heads=2)
    decoder = Decoder(model, 512)
    training = TrainingConfig(optimizer=OptimizerConfig(**settings))
    params = decoder.init(jax.random.key(0))
    state = make_optimizer(training, decoder, 5).init(params)
    work = training_cost("a", "a", decoder, training, 5, 64)
    assert work.weight_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert work.optimizer_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def planned(capsys, root: Path, *options: str, **changes: object) -> str:
    """What --plan prints for a small run with top-level settings changed."""
    arguments = ["--config", str(write_config(root, **changes)), "--plan", *options]
    assert main(arguments) == 0
    return capsys.readouterr().out


def line_of(shown: str, name: str) -> list[str]:
    (line,) = [x for x in shown.splitlines() if re.match(rf"│ {name} +│", x)]
    return [quadrant.strip() for quadrant in line.split("│")[2:-1]]


@pytest.mark.slow
def test_epochs_are_planned_and_paid_for(tmp_path: Path, capsys) -> None:
    """And the learning rate of an arm is its own."""
    write_corpus(tmp_path / "corpus.jsonl")
    constant = {"kind": "constant", "peak": 0.003, "warmup_fraction": 0.0}
    twice = {"preset": "frame", "epochs": 2, "lr_schedule": constant}
    curricula = {"once": {"preset": "frame"}, "twice": twice}
    shown = planned(capsys, tmp_path, "--tokens_per_second", "1000", curricula=curricula)
    once, double = (line_of(shown, f"pretrain {name}") for name in ("once", "twice"))
    steps = [int(re.search(rf"{name}: (\d+) steps", shown)[1]) for name in ("once", "twice")]
    assert 2 * steps[0] - 1 <= steps[1] <= 2 * steps[0]
    assert [int(line[4].replace(",", "")) for line in (once, double)] == [
        count * 16 * 64 for count in steps
    ]
    assert float(once[7].split()[0]) == pytest.approx(steps[0] * 16 * 64 / 1000 / 3600, abs=0.006)
    assert shown[shown.index("twice:") :].count("3.00e-03 to 3.00e-03") == 8


def test_steps_that_the_corpus_cannot_fill_are_said_before_anything_is_paid(
    tmp_path: Path, capsys
) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    pretrain = settings(tmp_path)["pretrain"]
    pretrain["training"] |= {"steps": 100_000}
    shown = planned(capsys, tmp_path, pretrain=pretrain)
    assert "frame: 100,000 steps of 16 rows need 1,600,000 rows an epoch" in shown
    assert "pretraining would be refused" in shown
    assert "refused" not in planned(capsys, tmp_path)


def test_a_plan_ends_with_the_phase_that_is_asked_for(tmp_path: Path, capsys) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    shown = planned(capsys, tmp_path, "--until", "score")
    assert "scoring, strong" in shown and "reference weak" in shown
    assert "pretrain" not in shown.replace("in pretraining", "") and "rate |" not in shown


def test_a_corpus_need_not_be_there_if_its_tokens_are_given(tmp_path: Path, capsys) -> None:
    shown = planned(capsys, tmp_path, "--corpus_tokens", "1e12")
    rows = round(0.6e12 / 65 / 4)
    (q3,) = [line for line in shown.splitlines() if line.startswith("│ Q3")]
    assert abs(int(q3.split("│")[2].replace(",", "")) - rows) <= 1
    assert "as given by --corpus_tokens" in shown
    assert main(["--config", str(tmp_path / "run.yaml"), "--plan"]) == 2
    assert "corpus.jsonl" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_half_done_says_what_is_left(tmp_path: Path, capsys) -> None:
    root = tmp_path / "[bold]"  # no markup
    root.mkdir()
    write_corpus(root / "corpus.jsonl")
    config = write_config(root)
    assert main(["--config", str(config), "--until", "tokenize"]) == 0
    directory, loaded = RunDirectory(root / "run"), load(config)
    fresh = planned(capsys, root, "--tokens_per_second", "10")
    assert line_of(fresh, "tokenize +│ tokenize")[-1] == "complete"
    assert f"phasesof{root}" in "".join(fresh.split())

    def begin(name: str) -> None:
        table = phases.list_phase_steps(loaded)
        expected = markers.expected_markers(loaded, table, corpus_signature(loaded))[name]
        marker = {"complete": False, "fingerprint": expected.fingerprint}
        write_json(directory.marker(name), marker)

    begin("score")
    directory.scores.mkdir()
    (directory.scores / "part-00000-of-00003.parquet").touch()
    begin("reference-weak")
    for step in ("20", "30", "40.tmp"):
        (directory.reference("weak") / "checkpoints" / step).mkdir(parents=True)
    write_trial_record(directory.reference("weak"), TrialRecord(120, 8, 64, {}, (120,), (), ()))
    begin("partition")
    for quadrant in ("Q1", "Q2"):
        write_json(directory.quadrants / quadrant / "part-00001-of-00002.json", {})
    shown = planned(capsys, root, "--tokens_per_second", "10")
    assert "begun: 1 of 3 parts" in shown
    assert "begun: 30 of 120 steps saved" in shown
    assert "begun: 2 of 8 parts of rows" in shown
    for name, left in (("scoring, weak", 2 / 3), ("reference weak", 3 / 4), ("pretrain frame", 1)):
        before, after = (float(line_of(x, name)[-1].split()[0]) for x in (fresh, shown))
        assert after == pytest.approx(before * left, abs=0.011)
        assert before > 0.1


def schedule(epochs: int = 1) -> DataSchedule:
    """Three stages of 25, 5 and 10 rows."""
    stages = [StageConfig({quadrant: 1.0}) for quadrant in ("a", "b", "c")]
    curriculum = CurriculumConfig(stages=stages, transition="hard", epochs=epochs)
    rows = {"a": 25, "b": 5, "c": 10}
    return resolve_curriculum(curriculum, rows, batch_size=8, sequence_length=1)


def test_stage_starts_rise_from_0_and_name_a_step_once() -> None:
    assert schedule().stage_starts(8) == [0, 3]  # rows 25 and 30 are both in step 3
    assert schedule().stage_starts(5) == [0, 5, 6]
    assert schedule(epochs=2).stage_starts(5) == [0, 5, 6, 8, 13, 14]
    assert dataclasses.replace(schedule(), stages=schedule().stages[:1]).stage_starts(8) == [0]
