"""Several runs on one page: what is read of a run, what stands in one figure, what is refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from frame_jax import compare
from frame_jax.main import write_config
from frame_jax.report import compare_page, compared_runs
from frame_jax.report.compared_runs import ComparedRun, ComparedRuns, read_compared_runs
from frame_jax.report.study import read_study
from frame_jax.report.study_results import FILE, Study
from frame_jax.run.directory import RunDirectory, write_dataclass
from frame_jax.run.markers import Marker
from tests.programs import REPOSITORY
from tests.report.compared import make_compared_run
from tests.report.synthetic import make_run

WORSE, NOTHING = [0.020, 0.021, 0.022], [-0.003, 0.001, 0.002]
PNG = b"\x89PNG"


def finish(directory: RunDirectory, config: Any) -> Study:
    """Leaves what the phases of a made-up run would have left of models and of the report."""
    study = read_study(config, directory)
    write_dataclass(directory.report / FILE, study)
    write_config(config, directory)
    for name, parameters in (("pretrain-random", 1000), ("reference-weak", 300)):
        write_dataclass(directory.marker(name), Marker(True, summary={"parameters": parameters}))
    write_dataclass(
        directory.marker("reference-strong"), Marker(True, summary={"parameters": 4_200_000})
    )
    return study


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, Study]:
    root = tmp_path_factory.mktemp("compare") / "mine"
    config, directory = make_run(root, steps=40, seeds=2)
    return directory, finish(directory, config)


def write_runs(path: Path, *runs: ComparedRun) -> str:
    write_dataclass(path, ComparedRuns(runs))
    return str(path)


def test_a_run_becomes_a_page_and_a_file_that_can_take_its_place(
    finished: tuple[RunDirectory, Study], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, study = finished
    assert compare.main([str(directory.root), "--out", str(tmp_path / "one")]) == 0
    shown = capsys.readouterr().out
    (run,) = read_compared_runs([str(tmp_path / "one")]).runs
    assert (run.name, run.layers, run.scores) == ("mine", "attention+dense", "PPL, PD")
    assert run.parameters == 1000
    assert run.references == "300, 4.2 M"
    assert run.tokens == study.lines[0].tokens and run.tokens_per_parameter == run.tokens / 1000
    held_out = json.loads(directory.evaluation("random").read_text("utf-8"))["checkpoints"][-1]
    assert run.documents == held_out["slices"]["all"]["documents"] > 0
    found = {c.line.arm: c.slices["all"] for c in study.comparisons}
    assert dict(run.effects()) == found and set(found) == {"frame", "pd_ascending"}
    page = (tmp_path / "one" / "index.html").read_text("utf-8")
    for text in (shown, page):
        assert all(f"{verdict.mean:+.4f}" in text for verdict in found.values())
    assert study.rule.split(".")[0] in page
    again = [str(tmp_path / "one" / "compare.json"), "--out", str(tmp_path / "two")]
    assert compare.main(again) == 0
    one, two = ((tmp_path / name / "compare.json").read_bytes() for name in ("one", "two"))
    assert one == two and len(one) < 10_000  # of 200 bytes a document there would be more


def test_it_starts_without_jax(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs.json", make_compared_run("a", {"frame": WORSE}))
    program = (
        "import sys; from frame_jax import compare; "
        f"assert compare.main([{runs!r}, '--out', {str(tmp_path / 'out')!r}]) == 0; "
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY)


def orders(panels: list[Any]) -> list[str]:
    return [panel.to_dict()["title"] for panel in panels]


def rows(panel: Any) -> list[dict[str, Any]]:
    """The rows of a panel that have a verdict, each once."""
    values = [row for data in panel.to_dict()["datasets"].values() for row in data]
    return list({json.dumps(row): row for row in values if "verdict" in row}.values())


def test_each_axis_has_the_runs_that_are_alike_in_all_else() -> None:
    effects = {"random_again": NOTHING, "frame": WORSE}
    runs = [
        make_compared_run("tiny_20", effects, parameters=30_000),
        make_compared_run("small_20", {**effects, "reverse": WORSE}, ratio=22),
        make_compared_run("small_80", effects, ratio=80),
        make_compared_run("bytes", {"frame": WORSE}, parameters=30_000, scores="bytes"),
        make_compared_run("mamba", {"frame": WORSE}, parameters=900_000, layers="mamba2+none"),
    ]
    by_size = compare_page.trend_panels(runs, "parameters", "tokens_per_parameter")
    assert orders(by_size) == [
        "random_again",
        "frame",
    ]  # as the runs have them; reverse has one size
    assert {(row["run"], row["series"]) for row in rows(by_size[0])} == {
        ("tiny_20", "20"),
        ("small_20", "20"),
    }
    by_tokens = compare_page.trend_panels(runs, "tokens_per_parameter", "parameters")
    assert {(row["run"], row["series"]) for row in rows(by_tokens[1])} == {
        ("small_20", "120 k"),
        ("small_80", "120 k"),
    }
    (by_score,) = compare_page.score_panels(runs)
    assert orders([by_score]) == ["30 k parameters, 20 tokens a parameter"]
    labels = [row["label"] for row in rows(by_score)]
    first = [f"PPL, PD (121 k, 475 k): {order}" for order in ("frame", "random_again")]
    assert sorted(labels) == sorted([*first, "bytes (121 k, 475 k): frame"])


def test_runs_of_another_kind_have_a_series_of_their_own() -> None:
    runs = [
        make_compared_run(f"{layers}{size}", {"frame": WORSE}, parameters=size, layers=layers)
        for layers in ("attention+dense", "mamba2+none")
        for size in (10_000, 40_000)
    ]
    (panel,) = compare_page.trend_panels(runs, "parameters", "tokens_per_parameter")
    assert {row["series"] for row in rows(panel)} == {"20", "20 mamba2+none"}
    assert len({row["x"] for row in rows(panel)}) == 4  # beside each other


def test_a_point_shows_both_errors_and_is_filled_by_the_verdict() -> None:
    runs = [
        make_compared_run("clear", {"frame": WORSE}, parameters=10_000),
        make_compared_run("few_documents", {"frame": WORSE}, document_error=0.02),
        make_compared_run("one_seed", {"frame": WORSE[:1]}, parameters=900_000),
    ]
    (panel,) = compare_page.trend_panels(runs, "parameters", "tokens_per_parameter")
    found = {row["run"]: row for row in rows(panel)}
    for run in runs:
        ((_, verdict),) = run.effects()
        row = found[run.name]
        assert (row["low"], row["high"]) == (verdict.low, verdict.high)
        assert (row["most"] - row["least"]) / 2 == pytest.approx(1.96 * verdict.document_error)
        assert row["detectable"] == verdict.detectable
    spec = panel.to_dict()
    points = {
        layer["mark"]["filled"]: {row["run"] for row in spec["datasets"][layer["data"]["name"]]}
        for layer in spec["layer"][-1]["layer"]
        if layer["mark"].get("type") == "point"
    }
    assert points == {True: {"clear"}, False: {"few_documents", "one_seed"}}


def test_a_figure_of_one_point_is_left_out_and_an_old_one_removed(tmp_path: Path) -> None:
    one, two = (
        make_compared_run(name, {"frame": WORSE}, parameters=size)
        for name, size in (("one", 10_000), ("two", 90_000))
    )
    both, alone = (write_runs(tmp_path / f"{len(r)}.json", *r) for r in ([one, two], [one]))
    out = tmp_path / "out"
    assert compare.main([both, "--out", str(out)]) == 0
    assert [path.stem for path in out.glob("*.png")] == ["effect-by-size"]
    assert (out / "effect-by-size.png").read_bytes().startswith(PNG)
    assert compare.main([alone, "--out", str(out)]) == 0
    assert list(out.glob("*.png")) == []
    assert "By size" not in (out / "index.html").read_text("utf-8")


def test_what_runs_differ_in_is_said() -> None:
    runs = [
        make_compared_run("a", {"frame": WORSE, "frame_constant": WORSE}, reliability=0.4),
        make_compared_run("b", {"frame": NOTHING}, documents=50, baseline="reverse"),
        make_compared_run("c", {"frame": WORSE}, references=""),
    ]
    assert compared_runs.comparison_notes(runs) == [
        "Not all runs have the same held-out text: 200 documents of 1 MB (a, c); "
        "50 documents of 250 kB (b)",
        "Not all runs have the same baseline: random (a, c); reverse (b)",
    ]
    assert compared_runs.comparison_notes(runs[:1]) == []
    assert compared_runs.summary_sentences(runs) == [
        "frame: worse in 2, no difference in 1 of 3 runs.",
        "frame_constant: worse in 1 of 1 runs.",
    ]
    header, lines = compared_runs.table_rows(runs, whole=True)
    assert all(len(line) == len(header) for line in lines)
    assert "0.40 (half)" in lines[0] and "0.40 (half)" not in lines[2]


def test_an_arm_against_its_own_twin_is_called_by_both() -> None:
    run = make_compared_run("a", {"frame_constant": WORSE, "frame": WORSE})
    twin = dataclasses.replace(run.study.comparisons[0].against, arm="random_constant")
    first = dataclasses.replace(run.study.comparisons[0], against=twin)
    study = dataclasses.replace(run.study, comparisons=(first, run.study.comparisons[1]))
    names = [name for name, _ in dataclasses.replace(run, study=study).effects()]
    assert names == ["frame_constant minus random_constant", "frame"]


def test_bad_input_is_refused(
    finished: tuple[RunDirectory, Study], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = str(finished[0].root), str(tmp_path / "out")

    def refused(*runs: str, out: str = out) -> str:
        assert compare.main([*runs, "--out", out]) == 2
        return capsys.readouterr().err

    assert "mine is given 2 times" in refused(root, f"{root}/")
    (tmp_path / "empty").mkdir()
    assert "report/verdict.json is missing" in refused(root, str(tmp_path / "empty"))
    assert "no finished run" in refused(str(tmp_path / "nowhere"))
    assert "is not as this release writes it" in refused(str(finished[0].report / FILE))
    assert "holds something else" in refused(root, out=str(finished[0].report))
    one = make_compared_run("one", {"frame": WORSE})
    study = dataclasses.replace(one.study, unit="nats per token")
    other = write_runs(tmp_path / "other.json", dataclasses.replace(one, study=study))
    assert "several units" in refused(root, other)
    lonely = tmp_path / "lonely"
    config, directory = make_run(lonely, arms=("random",), steps=20)
    finish(directory, config)
    assert "beside its baseline random" in refused(str(lonely))
    assert not Path(out).exists()
