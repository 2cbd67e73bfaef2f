"""What a study costs: evaluation by trial, and what the studies' configs say of themselves."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from frame_jax.config.corpus import CorpusConfig, SourceConfig
from frame_jax.config.curriculum import CurriculumConfig
from frame_jax.config.evaluation import AverageConfig, EvaluationConfig, TaskConfig
from frame_jax.config.file import load
from frame_jax.config.models import ModelConfig
from frame_jax.config.quadrants import PartitionConfig, RowsConfig
from frame_jax.config.run import RunConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.config.training import (
    InitialConfig,
    PretrainConfig,
    TrainingConfig,
)
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.errors import UserError
from frame_jax.evaluation.training_rows import choose_rows
from frame_jax.models.flops import forward_flops_per_token, training_flops_per_token
from frame_jax.models.hugging_face.export import model_config
from frame_jax.models.transformer import Decoder
from frame_jax.planning import costs
from frame_jax.planning.costs import Corpus, CostLine, list_costs, vocab_rows
from frame_jax.planning.plan import read_corpus, trial_schedule
from frame_jax.run.directory import write_json

REPOSITORY = Path(__file__).parents[2]
CORPUS = Corpus(reference=10_000, train=100_000, held_out=5_000, source="a test")
STEPS, BATCH, LENGTH, CONTEXT = 80, 8, 64, 32


def config(evaluation: EvaluationConfig) -> RunConfig:
    return RunConfig(
        run_directory="nowhere",
        corpus=CorpusConfig([SourceConfig("python_library")]),
        scoring=ScoringConfig(context=CONTEXT),
        partition=PartitionConfig(rows=RowsConfig(sequence_length=LENGTH)),
        pretrain=PretrainConfig(
            training=TrainingConfig(batch_size=BATCH, steps=STEPS, milestones=5)
        ),
        curricula={
            "frame": CurriculumConfig(preset="frame"),
            "random": CurriculumConfig(preset="random"),
        },
        seeds=2,
        evaluation=evaluation,
    )


def evaluate(run: RunConfig, corpus: Corpus = CORPUS) -> tuple[dict[str, CostLine], str]:
    """The lines of evaluation, by trial, and all notes."""
    schedules = {t.name: trial_schedule(run, corpus, t.arm)[0] for t in run.trials}
    work, notes = list_costs(run, corpus, schedules)
    found = {item.name.split()[1]: item for item in work if item.name.startswith("evaluate ")}
    return found, "\n".join(notes)


def forward(run: RunConfig, length: int) -> float:
    return forward_flops_per_token(Decoder(run.pretrain.model, vocab_rows(run)), length)


def test_every_trial_is_measured_at_each_of_its_checkpoints_and_averages() -> None:
    """Random order has one stage; frame's ends are no milestones."""
    run = config(EvaluationConfig())
    lines, notes = evaluate(run)
    assert [lines[t.name].phase_step for t in run.trials] == [
        f"evaluate-{t.name}" for t in run.trials
    ]
    milestones = {0, 16, 32, 48, 64, 80}
    assert lines["random"].tokens == lines["random-seed1"].tokens == 5_000 * len(milestones)
    assert lines["frame"].tokens == 5_000 * len(milestones | {20, 40, 60})
    assert lines["frame"].flops == lines["frame"].tokens * forward(run, CONTEXT)
    assert "evaluate" not in notes
    averaged, _ = evaluate(config(EvaluationConfig(averages=[AverageConfig(2), AverageConfig(3)])))
    assert averaged["random"].tokens == 5_000 * (len(milestones) + 2)


def test_documents_that_are_left_out_cost_nothing_once_they_are_counted() -> None:
    run = config(EvaluationConfig(max_documents=3))
    whole, said = evaluate(run)
    assert whole["random"].tokens == 5_000 * 6 and "evaluate: at most" in said
    part, silent = evaluate(run, dataclasses.replace(CORPUS, measured=700))
    assert part["random"].tokens == 700 * 6 and "at most" not in silent


def test_training_rows_are_read_once_under_the_final_weights() -> None:
    run = config(EvaluationConfig(training_rows=100))
    (plain, _), (more, _) = evaluate(config(EvaluationConfig())), evaluate(run)
    schedule, _ = trial_schedule(run, CORPUS, "frame")
    rows = len(choose_rows(SelectionMap(schedule, 0), 100, BATCH).row)
    extra = more["frame"].tokens - plain["frame"].tokens
    assert abs(extra / LENGTH - rows) <= 4  # one a quadrant, by where its strides end
    flops = more["frame"].flops - plain["frame"].flops
    assert flops == pytest.approx(extra * forward(run, LENGTH))


def test_tasks_are_not_counted_and_the_plan_says_so() -> None:
    (plain, silent) = evaluate(config(EvaluationConfig()))
    tasks = [TaskConfig("cloze", "absent.jsonl", prompt="{question}\nAnswer:")]
    given, said = evaluate(config(EvaluationConfig(tasks=tasks)))
    assert given["frame"].tokens == plain["frame"].tokens
    assert "without the tasks" in said and "tasks" not in silent


def test_a_third_model_costs_its_sample_and_the_weak_ones(tmp_path: Path) -> None:
    base = config(EvaluationConfig())
    third = Decoder(ModelConfig(hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2), 300)
    write_json(tmp_path / "config.json", model_config(third, 0, 1, 1 << 20))
    own = dataclasses.replace(base.reference, third=str(tmp_path), replicas=2)
    run = dataclasses.replace(base, reference=own, scoring=ScoringConfig(CONTEXT, reliability=50))
    work, notes = list_costs(run, CORPUS, {})
    own_lines = [item for item in work if item.phase_step == "score-third"]
    weak, other = own_lines
    assert [item.name for item in own_lines] == [
        f"sample, {n} of the third pair" for n in ("weak", "third")
    ]
    assert weak.tokens == other.tokens == 50 * CONTEXT
    assert (
        other.decoder.parameter_count() == third.parameter_count() != weak.decoder.parameter_count()
    )
    assert other.flops == other.tokens * forward_flops_per_token(third, CONTEXT)
    assert any("reference.third is imported" in note for note in notes)
    without, _ = list_costs(
        dataclasses.replace(run, reference=dataclasses.replace(own, third=None)), CORPUS, {}
    )
    assert without == [item for item in work if item.phase_step != "score-third"]
    large = dataclasses.replace(third, vocab_size=1 << 21)
    write_json(tmp_path / "config.json", model_config(large, 0, 1, 1 << 20))
    costs.find_shape.cache_clear()
    assert costs.replica_bytes(run) > costs.SCORED * large.parameter_count()
    absent = dataclasses.replace(own, third="nowhere")
    decoder, note = costs.reference_decoder(dataclasses.replace(run, reference=absent), "third")
    assert decoder == Decoder(base.reference.strong.model, vocab_rows(base))
    assert "its shape is assumed to be reference.strong.model" in str(note)


STATED = re.compile(
    r"python -m frame_jax\.main --config (configs/\S+) --plan (.*?) (?:which )?says "
    r"(\d+) models of ([\d.]+[MB]) tokens each, ([\d.]+e\d+) FLOPs and ([\d.]+) hours in all"
)


def stated() -> list[tuple[str, ...]]:
    """What the heads of the studies' configs say: config, options, models, tokens, FLOPs, hours."""
    found = []
    for path in sorted((REPOSITORY / "configs").glob("*_*.yaml")):
        head = path.read_text("utf-8").partition("\nrun_directory:")[0]
        text = " ".join(line.lstrip("# ").rstrip("\\ ") for line in head.splitlines())
        found += STATED.findall(" ".join(text.split()))
    return found


def test_configs_say_what_they_cost() -> None:
    named = [path for path, *_ in stated()]
    studies = (f"study_{name}" for name in ("cpu", "gpu", "pod", "pod"))
    assert named == [f"configs/{name}.yaml" for name in ("continue_gpu", *studies)]


@pytest.mark.parametrize("claim", stated(), ids=lambda claim: " ".join(claim[:2]))
def test_a_config_costs_what_it_says(claim: tuple[str, ...], tmp_path: Path) -> None:
    """To the digits that it gives."""
    path, options, models, tokens, flops, hours = claim
    words = shlex.split(options)
    given = {words.pop(at): float(words.pop(at)) for at in (0, 0)}
    run = load(REPOSITORY / path, *words, "--run_directory", str(tmp_path))
    corpus = read_corpus(run, given["--corpus_tokens"])
    schedules = {t.name: trial_schedule(run, corpus, t.arm)[0] for t in run.trials}
    work, _ = list_costs(run, corpus, schedules)
    trained = [item.tokens for item in work if item.name.startswith("pretrain ")]
    assert len(trained) == int(models) and len(set(trained)) == 1
    size = float(tokens[:-1]) * {"M": 1e6, "B": 1e9}[tokens[-1]]
    assert trained[0] == pytest.approx(size, rel=0.005)
    total = sum(item.flops for item in work)
    assert f"{total:.1e}".replace("e+", "e") == flops
    length = run.partition.rows.sequence_length
    each = training_flops_per_token(Decoder(run.pretrain.model, vocab_rows(run)), length)
    took = total / (given["--tokens_per_second"] * each) / 3600
    assert took == pytest.approx(float(hours), rel=0.01)


def test_a_model_that_is_not_there_yet_is_assumed_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own shape counts once there is a config.json; a network that is down stops no plan."""

    def unreachable(path: str, wanted: object = None) -> Path:
        raise UserError(f"{path}: cannot be read")

    base = config(EvaluationConfig())
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_layers": 3, "num_heads": 4}
    assumed = Decoder(ModelConfig(**shape), vocab_rows(base))
    for checkpoint, says in (
        (str(tmp_path / "later"), "later/config.json is not there; its shape is assumed"),
        ("hf://owner/name", "hf://owner/name: cannot be read; its shape is assumed"),
    ):
        initial = InitialConfig(checkpoint=checkpoint)
        pretrain = dataclasses.replace(base.pretrain, model=assumed.config, initial=initial)
        run = dataclasses.replace(base, pretrain=pretrain)
        with monkeypatch.context() as patch:
            if "://" in checkpoint:
                patch.setattr(costs, "local_copy", unreachable)
            assert costs.planned_target(run)[0] == assumed
            assert says in str(costs.planned_target(run)[1])
            assert costs.replica_bytes(run) > 0
    there = Decoder(ModelConfig(**shape | {"num_layers": 2}), 300)
    (tmp_path / "model").mkdir()
    write_json(tmp_path / "model/config.json", model_config(there, 0, 1, 1 << 20))
    initial = InitialConfig(checkpoint=str(tmp_path / "model"))
    pretrain = dataclasses.replace(base.pretrain, initial=initial)
    found, note = costs.planned_target(dataclasses.replace(base, pretrain=pretrain))
    assert (found.vocab_size, found.config.num_layers) == (300, 2) and "shape is that of" in str(
        note
    )
    wrong = dataclasses.replace(pretrain, model=assumed.config)
    with pytest.raises(UserError, match=r"pretrain\.model\.num_layers: 3 in the config, 2 there"):
        costs.planned_target(dataclasses.replace(base, pretrain=wrong))
