"""A study over a made-up run of several seeds: pairing, tables, and three places that agree."""

from __future__ import annotations

import dataclasses
import html
import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from scipy import stats

from frame_jax.config.curriculum import CurriculumConfig
from frame_jax.config.models import ModelConfig
from frame_jax.config.run import RunConfig
from frame_jax.config.training import InitialConfig, LRScheduleConfig, PretrainConfig
from frame_jax.evaluation.results import (
    HeldOutLoss,
    TrialResult,
    WeightsResult,
    read_result,
    scores_folder,
)
from frame_jax.models.flops import forward_flops_per_token, training_flops_per_token
from frame_jax.models.transformer import Decoder, write_description
from frame_jax.report import report
from frame_jax.report.study import first_step_at_loss, lines_to_compare_with, read_study
from frame_jax.report.study_results import (
    BEFORE,
    BETTER,
    NONE,
    ComparedLine,
    Comparison,
    Study,
    forgetting_sentences,
    load_study,
    terminal_table,
)
from frame_jax.report.training_curves import read_training_run, training_drops
from frame_jax.report.verdict import decide_verdict
from frame_jax.run.directory import RunDirectory, write_json
from tests.report.synthetic import make_run

SEEDS = 3
ARMS = ("frame", "random", "random_again")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, RunDirectory]:
    return make_run(tmp_path_factory.mktemp("run"), arms=ARMS, seeds=SEEDS)


@pytest.fixture(scope="module")
def study(finished: tuple[RunConfig, RunDirectory]) -> Study:
    return read_study(*finished)


def documents(directory: RunDirectory) -> dict[str, dict[str, Any]]:
    tokens = [
        row
        for path in directory.tokens.glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    quadrants = {
        row["doc_id"]: row["quadrant"] for row in pq.read_table(directory.assignment).to_pylist()
    }
    return {row["doc_id"]: row | {"quadrant": quadrants[row["doc_id"]]} for row in tokens}


def losses(directory: RunDirectory, trial: str) -> dict[str, float]:
    folder = scores_folder(directory, trial, read_result(directory, trial).final.name)
    return {row["doc_id"]: row["nll"] for row in pq.read_table(folder).to_pylist()}


def found(study: Study, arm: str) -> Comparison:
    (comparison,) = [c for c in study.comparisons if c.line.arm == arm]
    return comparison


@pytest.mark.parametrize("arm", ["frame", "random_again"])
def test_differences_are_paired_by_seed_and_by_document(
    finished: tuple[RunConfig, RunDirectory], study: Study, arm: str
) -> None:
    _, directory = finished
    about = documents(directory)
    suffixes = ["", *(f"-seed{n}" for n in range(1, SEEDS))]
    pairs = [(losses(directory, arm + s), losses(directory, "random" + s)) for s in suffixes]
    parts = found(study, arm).slices
    assert set(parts) == {
        *("all", "domain: code", "domain: prose", "language: python", "language: en"),
        *("language: zh", "quadrant: Q1", "quadrant: Q2", "quadrant: Q3", "quadrant: Q4"),
    }
    for label, verdict in parts.items():
        key, _, value = label.partition(": ")
        chosen = [d for d in pairs[0][0] if not value or about[d][key] == value]
        size = np.array([about[d]["bytes"] for d in chosen], float)
        d = np.array([[(a[doc] - b[doc]) / math.log(2) for doc in chosen] for a, b in pairs])
        by_seed = d.sum(1) / size.sum()
        np.testing.assert_allclose(verdict.by_seed, by_seed, rtol=1e-9)
        np.testing.assert_allclose(verdict.mean, by_seed.mean(), rtol=1e-9)
        low, high = stats.t.interval(0.95, SEEDS - 1, by_seed.mean(), stats.sem(by_seed))
        np.testing.assert_allclose([verdict.low, verdict.high], [low, high], rtol=1e-9)
        mean = d.mean(0)
        off = mean - mean.sum() / size.sum() * size
        error = math.sqrt((off**2).sum()) / size.sum()
        np.testing.assert_allclose(verdict.document_error, error, rtol=1e-6, atol=1e-12)
        if label == "all" and arm == "frame":  # a resampling of the documents spreads as much
            picks = np.random.default_rng(0).integers(0, len(mean), (4000, len(mean)))
            spread = (mean[picks].sum(1) / size[picks].sum(1)).std()
            np.testing.assert_allclose(error, spread, rtol=0.15)


def test_seeds_that_move_all_arms_alike_do_not_blur_their_difference(study: Study) -> None:
    """Losses of one arm differ between seeds by far more than frame differs from random."""
    frame = found(study, "frame").slices["all"]
    assert frame.verdict == BETTER and frame.high is not None and frame.high < 0
    assert found(study, "random_again").slices["all"].verdict == NONE
    assert study.comparisons_made == 2 * 10
    assert [result.seeds for result in study.lines] == [(0, 1, 2)] * 3


def test_losses_where_stages_begin_are_means_over_seeds(
    finished: tuple[RunConfig, RunDirectory], study: Study
) -> None:
    """Arms of one stage have none; another seed's metrics and checkpoints count as much."""
    config, directory = finished
    trials = [trial.name for trial in config.trials if trial.arm == "frame"]
    runs = [read_training_run(directory.pretrain(name), "frame") for name in trials]
    drops = [training_drops(run) for run in runs if run is not None]
    assert set(study.stages) == {"frame"} and len(drops) == SEEDS
    for index, losses in enumerate(study.stages["frame"]):
        own = [found[index] for found in drops]
        assert runs[0] is not None
        stage = runs[0].stages[index]
        assert (losses.stage, losses.step) == (stage.name, stage.start)
        np.testing.assert_allclose(losses.training, np.mean(own, axis=0), rtol=1e-12)
        for loss, step in zip(losses.held_out, losses.held_out_steps, strict=True):
            kept = [
                {c.step: c for c in read_result(directory, name).checkpoints} for name in trials
            ]
            held_out = [found[step].overall.nll_per_token for found in kept]
            assert np.ptp(held_out) > 0.01
            np.testing.assert_allclose(loss, np.mean(held_out), rtol=1e-12)
        assert losses.held_out_steps[0] <= losses.step < losses.held_out_steps[1]


@pytest.mark.slow
def test_the_terminal_the_page_and_the_file_say_the_same(
    finished: tuple[RunConfig, RunDirectory], study: Study
) -> None:
    config, directory = finished
    report.write_report(config, directory)
    assert load_study(directory) == study
    console = Console(file=io.StringIO(), width=140)
    console.print(terminal_table(study))
    lines = [
        [quadrant.strip() for quadrant in line.split("│")[1:-1]]
        for line in console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        if line.startswith("│")
    ]
    page = (directory.report / "index.html").read_text("utf-8")
    for label, *quadrants in lines:
        (row,) = re.findall(rf'<tr><th scope="row">{label}</th>.*?</tr>', page)[:1]
        assert [re.sub("<[^>]+>", "", c) for c in re.findall(r"<td>(.*?)</td>", row)] == quadrants
    assert lines[0][0] == "frame"
    assert [line[-1] for line in lines if line[0] == "random"] == ["baseline"]
    for comparison in study.comparisons:
        assert comparison.sentence in page
    assert study.rule in page and "20 comparisons were made" in page
    assert "verdicts" in {path.stem for path in directory.report.glob("*.png")}


@pytest.mark.slow
def test_one_seed_is_told_to_prove_nothing(tmp_path: Path) -> None:
    config, directory = make_run(tmp_path / "run", arms=("frame", "random"), steps=50)
    report.write_report(config, directory)
    page = (directory.report / "index.html").read_text("utf-8")
    assert "one seed proves nothing" in page and "found FRAME's order no better than random" in (
        html.unescape(page)
    )
    assert "python -m frame_jax.main --config configs/study_cpu.yaml" in page
    console = Console(file=io.StringIO(), width=120)
    console.print(terminal_table(read_study(config, directory)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "not tested" in text and "better" not in text and "worse" not in text


def test_a_seed_that_one_arm_lacks_is_left_out_of_its_comparison(tmp_path: Path) -> None:
    config, directory = make_run(tmp_path / "run", arms=("frame", "random"), steps=50, seeds=3)
    directory.evaluation("frame-seed1").unlink()
    comparison = found(read_study(config, directory), "frame")
    assert comparison.seeds == (0, 2) and len(comparison.slices["all"].by_seed) == 2


def test_nothing_is_compared_without_the_baseline_or_before_evaluation(tmp_path: Path) -> None:
    config, directory = make_run(tmp_path / "run", arms=("frame", "random"), steps=50)
    other = dataclasses.replace(config, baseline="reverse")
    assert read_study(other, directory).comparisons == ()
    for arm in ("frame", "random"):
        directory.evaluation(arm).unlink()
    assert read_study(config, directory).lines == ()


def test_like_is_compared_with_like(finished: tuple[RunConfig, RunDirectory]) -> None:
    constant = LRScheduleConfig(kind="constant")
    config = dataclasses.replace(
        finished[0],
        curricula={
            "random": CurriculumConfig(preset="random"),
            "frame": CurriculumConfig(preset="frame"),
            "frame_c": CurriculumConfig(preset="frame", lr_schedule=constant),
            "random_c": CurriculumConfig(preset="random", lr_schedule=constant),
        },
    )
    lines = [ComparedLine(arm, w) for arm in config.curricula for w in ("final", "average-last6")]
    base = ComparedLine("random", "final")

    def of(arm: str, weights: str = "final") -> list[ComparedLine]:
        return lines_to_compare_with(config, lines, ComparedLine(arm, weights))

    assert of("random") == []
    assert of("frame") == [base]
    assert of("frame_c") == [ComparedLine("random_c", "final"), base]
    assert of("random_c") == [base]
    assert of("frame", "average-last6") == [ComparedLine("random", "average-last6"), base]
    assert of("random", "average-last6") == [base]


def test_when_a_curve_comes_down_to_a_loss() -> None:
    def curve(*points: tuple[int, float]) -> TrialResult:
        losses = [(step, HeldOutLoss(1, 1, 1, nll, nll, nll)) for step, nll in points]
        checkpoints = [WeightsResult(str(s), (s,), s, s, {"all": loss}) for s, loss in losses]
        return TrialResult("frame", tuple(checkpoints))

    falling = curve((0, 8.0), (10, 4.0), (20, 3.0), (30, 2.9))
    assert first_step_at_loss(falling, 3.5) == 15
    assert first_step_at_loss(falling, 3.0) == 20
    assert first_step_at_loss(falling, 2.8) is None
    assert (
        first_step_at_loss(curve((0, 2.0), (10, 3.0), (20, 1.0)), 2.5) == 0
    )  # the first time counts


def test_cost_is_flops_of_what_was_run_and_the_saving_is_net_of_scoring(tmp_path: Path) -> None:
    config, directory = make_run(tmp_path / "run", arms=("frame", "random"), seeds=2)
    tokens = 400 * 8 * 64
    for trial in config.trials:
        write_json(
            directory.marker(f"pretrain-{trial.name}"),
            {"complete": True, "seconds": 5.0, "summary": {"tokens": tokens}},
        )
    study = read_study(config, directory)
    assert [cost.work for cost in study.costs] == [f"pretrain {t.name}" for t in config.trials]
    assert len({cost.flops for cost in study.costs}) == 1
    (frame,) = study.steps_to_baseline
    assert frame.arm == "frame" and len(frame.steps) == 2
    for step, suffix in zip(frame.steps, ("", "-seed1"), strict=True):
        frames, randoms = (read_result(directory, a + suffix) for a in ("frame", "random"))
        last = randoms.final.overall.nll_per_token
        points = [(c.step, c.overall.nll_per_token) for c in frames.checkpoints]
        assert step == pytest.approx(
            np.interp(-last, [-v for _, v in points], [s for s, _ in points])
        )
    assert frame.share == pytest.approx(sum(frame.steps) / 2 / 400)
    assert frame.share_with_scoring == pytest.approx(frame.share)  # nothing was scored here


def test_scoring_is_paid_by_the_order_that_needs_it(tmp_path: Path) -> None:
    """References and scoring, over what one model of the baseline costs, come on top."""
    config, directory = make_run(tmp_path / "run", arms=("frame", "random"), seeds=2)

    def finish(unit: str, summary: dict[str, Any]) -> None:
        marker = {"complete": True, "seconds": 1.0, "summary": summary}
        write_json(directory.marker(unit), marker)

    shapes = {
        name: Decoder(ModelConfig(hidden_size=64, num_layers=layers), vocab_size=258)
        for name, layers in (("weak", 1), ("strong", 2))
    }
    for name, decoder in shapes.items():
        directory.reference(name).mkdir(parents=True)
        write_description(directory.reference(name), decoder)
        finish(f"reference-{name}", {"tokens": 3000})
    finish("tokenize", {"tokens": {"reference": 7, "train": 4000, "held_out": 1000}})
    finish("score", {})
    tokens = 400 * 8 * 64
    for trial in config.trials:
        finish(f"pretrain-{trial.name}", {"tokens": tokens})
    context, rows = config.scoring.context, config.reference.rows.sequence_length
    overhead = sum(
        5000 * forward_flops_per_token(d, context) + 3000 * training_flops_per_token(d, rows)
        for d in shapes.values()
    )
    length = config.partition.rows.sequence_length
    whole = tokens * training_flops_per_token(Decoder(ModelConfig(), 258), length)
    (frame,) = read_study(config, directory).steps_to_baseline
    assert overhead / whole > 0.001
    assert frame.share_with_scoring == pytest.approx(frame.share + overhead / whole)
    directory.reference("weak").joinpath("model.json").unlink()  # as of one that was imported
    directory.marker("reference-weak").unlink()
    (frame,) = read_study(config, directory).steps_to_baseline
    assert frame.share is not None and frame.share_with_scoring is None


@pytest.mark.slow
def test_studies_of_two_equal_orders_end_in_no_difference(tmp_path: Path) -> None:
    """19 of 20 of them and three standard errors, from losses of documents to the verdict.

    A model's loss has its seed, which moves both arms, a chance of its own, and a taste of its arm
    for each document.
    """
    studies = 60
    config, directory = make_run(
        tmp_path / "run", arms=("random", "random_again"), steps=8, seeds=SEEDS, documents=400
    )
    random, words = np.random.default_rng(0), []
    tables = {}
    for trial in config.trials:
        name = read_result(directory, trial.name).final.name
        path = scores_folder(directory, trial.name, name)
        (tables[trial],) = path.glob("part-*.parquet")
    about = pq.read_table(tables[config.trials[0]])
    tokens = about["predicted_tokens"].to_numpy()
    for _ in range(studies):
        of_seed = dict(zip(config.all_seeds, random.normal(3, 0.2, SEEDS), strict=True))
        taste = {arm: random.normal(0, 0.05, len(tokens)) for arm in config.curricula}
        for trial, path in tables.items():
            level = of_seed[trial.seed] + random.normal(0, 0.004) + taste[trial.arm]
            nll = pa.array(tokens * level)
            pq.write_table(about.set_column(about.schema.get_field_index("nll"), "nll", nll), path)
        (comparison,) = read_study(config, directory).comparisons
        words.append(comparison.slices["all"].verdict)
    assert words.count(NONE) >= 0.95 * studies - 3 * math.sqrt(studies * 0.05 * 0.95)


def continued(finished: tuple[RunConfig, RunDirectory]) -> RunConfig:
    """The run as one that began with a model: its step 0 is then the untouched model."""
    initial = PretrainConfig(initial=InitialConfig(checkpoint="model"))
    return dataclasses.replace(finished[0], pretrain=initial)


def test_a_continued_model_is_compared_with_what_it_was(
    finished: tuple[RunConfig, RunDirectory], study: Study
) -> None:
    config, directory = continued(finished), finished[1]
    found = read_study(config, directory)
    assert found.comparisons == study.comparisons and study.before == ()
    assert [c.line.arm for c in found.before] == list(ARMS)
    about = documents(directory)
    for comparison in found.before:
        assert comparison.against.label == BEFORE
        for seed, value in enumerate(comparison.slices["all"].by_seed):
            suffix = f"-seed{seed}" if seed else ""
            # Of all arms of a seed the untouched model is the first's.
            folder = scores_folder(directory, f"{ARMS[0]}{suffix}", "0")
            before = {row["doc_id"]: row["nll"] for row in pq.read_table(folder).to_pylist()}
            after = losses(directory, f"{comparison.line.arm}{suffix}")
            size = sum(about[d]["bytes"] for d in after)
            bits = sum(after[d] - before[d] for d in after) / math.log(2)
            assert value == pytest.approx(bits / size)
        assert comparison.slices["all"].verdict == BETTER
    (line,) = [line for line in found.lines if line.line.arm == BEFORE]
    assert (line.tokens, line.seeds) == (0, (0, 1, 2))
    assert found.comparisons_made == study.comparisons_made + 3 * 10


def test_where_continuing_made_it_worse_is_named(
    finished: tuple[RunConfig, RunDirectory],
) -> None:
    found = read_study(continued(finished), finished[1])
    (nothing,) = forgetting_sentences(found)
    assert (
        nothing == "No domain or language has become worse than before continuing, as far as seen."
    )

    def with_slices(arm: str, **by_seed: list[float]) -> Comparison:
        slices = {name.replace("_", ": "): decide_verdict(d, 1e-4) for name, d in by_seed.items()}
        line = ComparedLine(arm, "final")
        return dataclasses.replace(
            found.before[0], line=line, slices=found.before[0].slices | slices
        )

    worse, wide, better = [0.02, 0.021, 0.022], [0.02, 0.4, -0.2], [-0.02, -0.021, -0.022]
    before = (
        with_slices("frame", domain_code=worse, language_zh=worse, quadrant_Q1=worse),
        with_slices("random", domain_code=wide, domain_prose=better),
    )
    assert forgetting_sentences(dataclasses.replace(found, before=before)) == [
        "frame has become worse on domain: code (+0.0210 bits per byte), "
        "language: zh (+0.0210 bits per byte)."
    ]
    assert forgetting_sentences(dataclasses.replace(found, before=())) == []


@pytest.mark.slow
def test_the_page_and_the_terminal_show_the_untouched_model(
    finished: tuple[RunConfig, RunDirectory], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    shutil.copytree(finished[1].root, root)
    config = dataclasses.replace(continued(finished), run_directory=str(root))
    report.write_report(config, RunDirectory(root))
    page = html.unescape((root / "report/index.html").read_text("utf-8"))
    study = load_study(RunDirectory(root))
    shown = io.StringIO()
    Console(file=shown, width=132).print(terminal_table(study))
    for comparison in study.before:
        assert comparison.sentence in page
        assert f"{comparison.slices['all'].mean:+.4f}" in shown.getvalue()
    for text in (page, " ".join(shown.getvalue().split())):
        assert "No domain or language has become worse" in text
    (table,) = re.findall(r"<table>(?:(?!</table>).)*held-out part.*?</table>", page, re.S)
    assert BEFORE in table
    figures = json.loads(page.split('id="figures">')[1].split("</script>")[0])
    values = figures["held-out-loss-0"]["datasets"]
    steps = {row["step"] for rows in values.values() for row in rows if "step" in row}
    assert 0 in steps
