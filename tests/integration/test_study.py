"""A run of one seed that becomes a study, is interrupted, and goes on."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from frame_jax import checkpoints, main
from frame_jax.models.transformer import read_description
from frame_jax.report.study_results import ComparedLine, load_study
from frame_jax.run import markers
from frame_jax.run.directory import RunDirectory
from tests.integration.small_run import settings, write_config, write_corpus

pytestmark = pytest.mark.slow
EVALUATION = {"max_documents": 20, "averages": [{"last": 2}], "training_rows": 40}


class KilledError(Exception):
    pass


def configs(root: Path) -> tuple[Path, Path]:
    """The same run under one seed and under two."""
    pretrain = settings(root)["pretrain"]
    pretrain["training"] |= {"steps": 12, "milestones": 2, "tail_checkpoints": 2}
    changes = {"pretrain": pretrain, "evaluation": EVALUATION, "seed": 3}
    changes["reference"] = settings(root)["reference"]
    for name in ("weak", "strong"):
        changes["reference"][name]["training"] |= {"steps": 8, "milestones": 0}
    one = write_config(root, **changes).rename(root / "one.yaml")
    return one, write_config(root, **changes, seeds=2)


def outputs(directory: RunDirectory) -> dict[str, bytes]:
    """Everything that a run of one seed left, but for its report."""
    names = ("scores", "quadrants", "pretrain/frame", "pretrain/random", "evaluation/frame")
    return {
        str(path): path.read_bytes()
        for name in names
        for path in (directory.root / name).rglob("*")
        if path.is_file()
    }


def initial(directory: RunDirectory, trial: str) -> np.ndarray:
    folder = directory.pretrain(trial)
    params = checkpoints.load_params(folder / "checkpoints", read_description(folder), 0)
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])


def test_a_study_grows_from_a_run_and_survives_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    one, two = configs(tmp_path)
    assert main.main(["--config", str(one)]) == 0
    assert "not tested" in capfd.readouterr().out
    directory = RunDirectory(tmp_path / "run")
    before = outputs(directory)

    ran: list[str] = []
    whole = markers.run_phase_step

    def run_unit(config, directory, unit, expected) -> None:  # type: ignore[no-untyped-def]
        if unit.name == killed:
            raise KilledError
        ran.append(unit.name)
        whole(config, directory, unit, expected)

    monkeypatch.setattr(markers, "run_phase_step", run_unit)
    killed = "pretrain-random-seed4"
    with pytest.raises(KilledError):
        main.main(["--config", str(two)])
    assert ran == ["pretrain-frame-seed4"]
    killed = "evaluate-random-seed4"
    with pytest.raises(KilledError):
        main.main(["--config", str(two)])
    assert ran[1:] == ["pretrain-random-seed4", "evaluate-frame-seed4"]
    killed = ""
    capfd.readouterr()
    assert main.main(["--config", str(two)]) == 0
    assert ran[3:] == ["evaluate-random-seed4", "report"]
    assert outputs(directory) == before

    study = load_study(directory)
    assert study.seeds == (3, 4)
    assert {result.line: result.seeds for result in study.lines} == {
        ComparedLine(arm, weights): (3, 4)
        for arm in ("frame", "random")
        for weights in ("final", "average-last2")
    }
    shown = capfd.readouterr().out
    assert "not tested" not in shown and "frame, mean of 2" in shown
    assert (directory.report / "training-rows.png").exists()
    costs = {cost.work for cost in study.costs}
    assert {"reference weak", "reference strong", "score", "pretrain random-seed4"} <= costs

    # A seed's arms begin with the same weights, and another seed's with others.
    weights = {t: initial(directory, t) for t in ("frame", "random", "frame-seed4", "random-seed4")}
    np.testing.assert_array_equal(weights["frame"], weights["random"])
    np.testing.assert_array_equal(weights["frame-seed4"], weights["random-seed4"])
    assert np.abs(weights["frame"] - weights["frame-seed4"]).max() > 0.01
