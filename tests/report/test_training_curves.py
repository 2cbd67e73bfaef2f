"""Numbers taken from `metrics.jsonl` against NumPy over all of its lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frame_jax.report import training_curves
from frame_jax.report.training_curves import TrainingRun, read_training_run
from frame_jax.run.directory import RunDirectory
from tests.report.synthetic import BATCH_ROWS, SEQUENCE_LENGTH, write_arm

STEPS = 1203  # no multiple of anything


@pytest.fixture(scope="module")
def arm(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    directory = RunDirectory(tmp_path_factory.mktemp("run"))
    write_arm(directory, "frame", STEPS)
    found = read_training_run(directory.pretrain("frame"), "frame")
    assert found is not None
    return found


def records(arm: TrainingRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (arm.folder / "metrics.jsonl").read_text().splitlines()]


def test_a_thinned_curve_is_bounded_and_keeps_the_mean(arm: TrainingRun) -> None:
    losses = np.array([record["loss"] for record in records(arm)])
    for points in (7, 100, 5000):
        rows = training_curves.thinned_curve(arm, points)
        assert len(rows) == min(points, STEPS)
        ends = [row.tokens // (BATCH_ROWS * SEQUENCE_LENGTH) for row in rows]
        assert ends == sorted(ends) and ends[-1] == STEPS
        means = [part.mean() for part in np.split(losses, ends[:-1])]
        np.testing.assert_allclose([row.loss for row in rows], means, rtol=1e-12)


def test_shares_of_a_batch_sum_to_one(arm: TrainingRun) -> None:
    totals: dict[int, float] = {}
    for row in training_curves.mixture_curve(arm, points=10):
        totals[row.tokens] = totals.get(row.tokens, 0) + row.share
    assert len(totals) == 10
    np.testing.assert_allclose(list(totals.values()), 1)


def test_drops_are_means_beside_each_boundary(arm: TrainingRun) -> None:
    losses = np.array([record["loss"] for record in records(arm)])
    drops = training_curves.training_drops(arm)
    starts = [stage.start for stage in arm.stages]
    assert starts == [0, 301, 602, 902]
    span = int(np.ceil(0.04 * STEPS))
    assert drops[0][0] == losses[0]
    for start, drop in zip(starts[1:], drops[1:], strict=True):
        before = losses[start - 2 * span : start - span].mean()
        after = losses[start + span : start + 2 * span].mean()
        np.testing.assert_allclose(drop, [before, after], rtol=1e-12)
        assert before - after > 0.2  # the curve was made to fall by 0.3 there


def test_windows_stay_inside_short_stages(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    write_arm(directory, "frame", 4)  # one step a stage
    short = read_training_run(directory.pretrain("frame"), "frame")
    assert short is not None
    losses = [record["loss"] for record in records(short)]
    drops = training_curves.training_drops(short)
    np.testing.assert_allclose([after for _, after in drops], losses)
    np.testing.assert_allclose([before for before, _ in drops[1:]], losses[:-1])


def test_a_diverged_step_leaves_a_curve(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    write_arm(directory, "random", 50)
    path = directory.pretrain("random") / "metrics.jsonl"
    lines = path.read_text().splitlines()
    broken = {**json.loads(lines[20]), "loss": float("nan"), "tokens_per_second": None}
    path.write_text("\n".join([*lines[:20], json.dumps(broken), *lines[21:]]) + "\n")
    found = read_training_run(directory.pretrain("random"), "random")
    assert found is not None
    rows = training_curves.thinned_curve(found, 10)
    assert len(rows) == 10 and all(np.isfinite(row.loss) for row in rows)


def test_goodput_is_over_all_attempts_and_unknown_mfu_is_none(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    write_arm(directory, "frame", 6)
    # Two attempts: 20 s of steps in 40 s, then 30 s in 50 s; each begins with an untimed step.
    seconds, goodput = [None, 8.0, 12.0, None, 10.0, 20.0], [0.0, 0.2, 0.5, 0.0, 0.4, 0.6]
    path = directory.pretrain("frame") / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line, time, share in zip(lines, seconds, goodput, strict=True):
        line |= {"seconds": time, "goodput": share, "mfu": None}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arm = read_training_run(directory.pretrain("frame"), "frame")
    assert arm is not None
    found = training_curves.training_speed(arm)
    assert found.goodput == pytest.approx(50 / 90) and found.seconds == 50
    assert found.mfu is None


def test_speed_is_that_of_the_median_step(arm: TrainingRun) -> None:
    timed = [record for record in records(arm) if record["seconds"] is not None]
    found = training_curves.training_speed(arm)
    for key in ("tokens_per_second", "mfu"):
        assert getattr(found, key) == pytest.approx(np.median([record[key] for record in timed]))


def test_what_has_not_been_trained_is_no_arm(tmp_path: Path) -> None:
    assert read_training_run(tmp_path / "pretrain" / "frame", "frame") is None
