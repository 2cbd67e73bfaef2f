"""The report phase over a made-up run: what it writes, what it says, and from how little."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from frame_jax.errors import UserError
from frame_jax.evaluation.results import TrialResult, WeightsResult, read_result, read_results
from frame_jax.report import chapters, report, task_results
from frame_jax.report.held_out_curves import checkpoints_around
from frame_jax.run.directory import RunDirectory, write_json
from tests.report.synthetic import make_run, make_score


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_run(tmp_path_factory.mktemp("run"))


def test_checkpoints_around_a_boundary_include_the_one_on_it() -> None:
    points = [WeightsResult(str(step), (step,), step, step, {}) for step in (10, 20, 30)]
    result = TrialResult("frame", tuple(points))
    steps = [
        tuple(point and point.step for point in checkpoints_around(result, step))
        for step in (0, 10, 15, 29, 30)
    ]
    assert steps == [(None, 10), (10, 20), (10, 20), (20, 30), (30, None)]


@pytest.mark.slow
def test_the_page_stays_small_and_every_figure_is_a_png(tmp_path: Path) -> None:
    config, directory = make_run(tmp_path / "run", arms=("frame", "random"), steps=20_000)
    summary = report.write_report(config, directory)
    assert (directory.root / summary["page"]).stat().st_size < 2_000_000
    assert {"training-loss", "held-out-loss", "density", "balance"} <= set(summary["figures"])
    pictures = {path.stem: path.read_bytes() for path in directory.report.glob("*.png")}
    assert set(pictures) == set(summary["figures"])
    for name, data in pictures.items():
        assert data.startswith(b"\x89PNG") and len(data) > 5_000, name


@pytest.mark.slow
def test_a_run_that_is_not_evaluated_has_a_report(tmp_path: Path) -> None:
    config, directory = make_run(tmp_path / "run", arms=("frame",), steps=50)
    shutil.rmtree(directory.root / "evaluation")
    assert "held-out-loss" not in report.write_report(config, directory)["figures"]
    assert "No curriculum has been evaluated" in (directory.report / "index.html").read_text()


def quadrants(html: str, row: str) -> list[str]:
    """Texts of the cells of the table row that begins with `row`."""
    (line,) = re.findall(rf'<tr><th scope="row">{row}.*?</tr>', html)
    return [re.sub("<[^>]+>", "", quadrant) for quadrant in re.findall(r"<td>(.*?)</td>", line)]


@pytest.mark.slow
def test_tasks_stand_beside_a_guess_with_their_errors(finished: Any) -> None:
    config, directory = finished
    report.write_report(config, directory)
    page = (directory.report / "index.html").read_text("utf-8")
    # By hand: sqrt(0.45 * 0.55 / 999) = 1.57%, sqrt(0.26 * 0.74 / 100) = 4.39%.
    page = page[page.index("best blind rule") :]  # the second table
    assert quadrants(page, "letters")[:3] == ["25.0", "30.0", "45.0 ± 1.6 (46.0 ± 1.6)"]
    assert quadrants(page, "cloze")[2] == "26.0 ± 4.4\xa0○ (27.0 ± 4.4\xa0○)"  # a guess
    # The mean of both, its error half of the root of the sum of squares.
    assert quadrants(page, "mean of the tasks")[2] == "35.5 ± 2.3 (36.5 ± 2.3)"
    assert '<span class="best">45.0 ± 1.6</span>' in page
    assert '<span class="best">26.0' not in page
    assert "lost their beginning to fit: cloze 7 of 101." in page
    results = read_results(directory)
    without = {arm: dataclasses.replace(result, tasks=()) for arm, result in results.items()}
    assert task_results.final_scores(without) == {}


@pytest.mark.slow
def test_every_stage_has_a_drop_on_both_sides_in_both_losses(finished: Any) -> None:
    config, directory = finished
    report.write_report(config, directory)
    page = (directory.report / "index.html").read_text("utf-8")
    initial = read_result(directory, "frame").checkpoints[0]
    before_all = f"{initial.overall.nll_per_token:.4f} (0)"
    assert quadrants(page, "Q3 begins")[4] == before_all
    for stage in ("Q3", "Q4", "Q1", "Q2"):
        row = quadrants(page, f"{stage} begins")
        training, held_out = row[1:4], [quadrant.split()[0] for quadrant in row[4:7]]
        for before, after, drop in (training, held_out):
            assert float(drop) > 0
            assert float(before) - float(after) == pytest.approx(float(drop), abs=2e-3)


def test_an_arm_without_a_task_has_a_dash() -> None:
    tasks = {
        "frame": (
            make_score("a", 9, 0.9, 0.01),
            make_score("a", 3, 0.1, 0.01),
            make_score("b", 9, 0.5, None),
        ),
        "random": (make_score("a", 9, 0.6, 0.01),),
        "late": (),
    }
    results = {arm: TrialResult(arm, (), tasks=own) for arm, own in tasks.items()}
    finals = task_results.final_scores(results)
    assert {task: list(scores) for task, scores in finals.items()} == {
        "a": ["frame", "random"],
        "b": ["frame"],
    }
    html = task_results.task_table(finals, list(results))
    assert quadrants(html, "a")[1:] == ["75.0", "90.0 ± 1.0", "60.0 ± 1.0", "–"]
    assert '<span class="best">90.0' in html and '<span class="best">60.0' not in html
    assert quadrants(html, "b")[1:] == ["75.0", "50.0", "–", "–"]
    assert quadrants(html, "mean")[1:] == ["75.0", "70.0", "–", "–"]


def test_what_the_phases_decided_is_in_the_report(tmp_path: Path) -> None:
    config, directory = make_run(tmp_path / "run", arms=("random",), steps=50)
    for unit, key in (("tokenize", "tokenizer"), ("score", "warnings"), ("partition", "warnings")):
        counts = {"documents": {"train": 3}, "rejected": 0} if unit == "tokenize" else {}
        summary = {**counts, key: [f"<{unit}> was odd"]}
        write_json(directory.marker(unit), {"complete": True, "seconds": 1.0, "summary": summary})
    lines = chapters.phase_messages(directory)
    assert lines[-3:] == ["<tokenize> was odd", "<score> was odd", "<partition> was odd"]
    html = "".join(str(piece) for piece in chapters.settings_chapter(config))
    assert "&lt;score&gt; was odd" in html


def test_nothing_to_report_is_said(finished: Any, tmp_path: Path) -> None:
    config, _ = finished
    with pytest.raises(UserError, match="nothing has been trained"):
        report.write_report(config, RunDirectory(tmp_path))
