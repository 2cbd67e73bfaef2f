"""What an arm leaves behind that the config no longer names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax.errors import UserError
from frame_jax.evaluation.results import read_result, read_results, scores_folder
from frame_jax.report.study import read_study
from frame_jax.run import markers, phases
from frame_jax.run.directory import RunDirectory, read_json, write_json
from frame_jax.run.markers import changed_input
from frame_jax.run.trial_record import TrialRecord, read_trial_record, write_trial_record
from tests.report.synthetic import make_run
from tests.run.test_phases import complete, config

THREE = (
    '--curricula={"frame": {"preset": "frame"}, "random": {"preset": "random"}, '
    '"folded": {"preset": "folded"}}'
)
RECORD = TrialRecord(1, 8, 64, {}, (1,), (), ())


@pytest.fixture
def finished(tmp_path: Path) -> RunDirectory:
    """A finished run of three arms, with outputs, of which `folded` then leaves the config."""
    directory = RunDirectory(tmp_path)
    complete(directory, config(THREE))
    for arm in ("frame", "random", "folded"):
        write_trial_record(directory.pretrain(arm), RECORD)
        write_json(directory.evaluation(arm), {"checkpoints": []})
        (directory.evaluation(arm).with_suffix("") / "1").mkdir(parents=True)
    return directory


@pytest.mark.parametrize("phase", ["tokenize", "score", "partition", "reference"])
def test_redo_removes_what_an_arm_left_that_the_config_does_not_name(
    phase: str, finished: RunDirectory
) -> None:
    removed = markers.remove_outputs(finished, phases.list_phase_steps(config()), phase)
    assert {"pretrain-folded", "evaluate-folded", "pretrain-frame", "report"} <= set(removed)
    assert not finished.marker("pretrain-folded").exists()
    assert not finished.marker("evaluate-folded").exists()
    assert not finished.pretrain("folded").exists()
    assert not finished.evaluation("folded").exists()
    assert not finished.evaluation("folded").with_suffix("").exists()


@pytest.mark.parametrize("phase", ["pretrain", "evaluate", "pretrain-frame", "report"])
def test_an_arm_stays_whose_rows_stay(phase: str, finished: RunDirectory) -> None:
    removed = markers.remove_outputs(finished, phases.list_phase_steps(config()), phase)
    assert "pretrain-folded" not in removed and "evaluate-folded" not in removed
    assert finished.evaluation("folded").exists() and finished.pretrain("folded").exists()


def test_outputs_without_a_marker_go_too(finished: RunDirectory) -> None:
    for unit in ("pretrain-folded", "evaluate-folded"):
        finished.marker(unit).unlink()
    markers.remove_outputs(finished, phases.list_phase_steps(config()), "partition")
    assert not finished.pretrain("folded").exists()
    assert not finished.evaluation("folded").exists()


def test_a_reference_model_goes_that_is_imported_now(finished: RunDirectory) -> None:
    now = config("--reference.weak.checkpoint=m", "--reference.strong.checkpoint=n")
    write_json(finished.reference("weak") / "model.json", {})
    markers.remove_outputs(finished, phases.list_phase_steps(now), "tokenize")
    assert not finished.marker("reference-weak").exists()
    assert not finished.marker("reference-rows").exists()
    assert not finished.reference("weak").exists()


def partition_anew(directory: RunDirectory) -> None:
    """As a program does that is killed before it has removed what was made from the rows."""
    path = directory.marker("partition")
    write_json(path, read_json(path) | {"fingerprint": "of other rows"})


def test_an_arm_of_other_rows_is_known_and_not_exported(finished: RunDirectory) -> None:
    assert changed_input(finished, "evaluate-folded") is None
    assert read_trial_record(finished, "folded")[1] == RECORD
    partition_anew(finished)
    assert changed_input(finished, "evaluate-folded") == "partition"
    with pytest.raises(UserError, match=r"before partition was made anew.*--redo pretrain-folded"):
        read_trial_record(finished, "folded")


def test_the_report_shows_no_arm_of_other_rows(tmp_path: Path) -> None:
    run, directory = make_run(tmp_path, arms=("frame", "random"))
    alone = dataclasses.replace(run, curricula={"random": run.curricula["random"]})
    assert [result.line.arm for result in read_study(alone, directory).lines] == ["random"]
    complete(directory, config())
    assert set(read_results(directory)) == {"frame", "random"}
    marker = read_json(directory.marker("pretrain-frame"))
    write_json(
        directory.marker("pretrain-frame"), marker | {"inputs": {"partition": "of other rows"}}
    )
    assert set(read_results(directory)) == {"random"}


def test_arms_without_a_common_document_have_no_difference(tmp_path: Path) -> None:
    run, directory = make_run(tmp_path / "run", arms=("frame", "random"))
    assert [c.line.arm for c in read_study(run, directory).comparisons] == ["frame"]
    final = read_result(directory, "random").final.name
    for path in scores_folder(directory, "random", final).glob("*.parquet"):
        table = pq.read_table(path)
        others = pa.array([f"other {doc_id}" for doc_id in table["doc_id"].to_pylist()])
        pq.write_table(table.set_column(table.column_names.index("doc_id"), "doc_id", others), path)
    assert read_study(run, directory).comparisons == ()
