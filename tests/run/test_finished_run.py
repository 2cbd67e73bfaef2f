"""A finished run stays finished: its markers, kept beside this file, are current under this code.

After a change of settings, or of what a fingerprint is made of, they are made anew, in an empty
folder, where REPOSITORY is the path of this one:

    cp REPOSITORY/tests/run/finished_run/{config.yaml,corpus.jsonl} .
    python -m frame_jax.main --config config.yaml
    cp run/*.json REPOSITORY/tests/run/finished_run
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from frame_jax import main
from frame_jax.config.file import load
from frame_jax.corpus.parts import corpus_signature
from frame_jax.parallel import hardware
from frame_jax.run import compute_dtype, markers, phases
from frame_jax.run.directory import RunDirectory

FINISHED = Path(__file__).parent / "finished_run"
COMPUTING = ("reference.weak", "reference.strong", "pretrain")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the config and the corpus of that run, and its markers under `run/`."""
    (tmp_path / "run").mkdir()
    for path in FINISHED.iterdir():
        shutil.copy(path, tmp_path / ("run" if path.suffix == ".json" else ".") / path.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nothing_is_left_to_do(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    assert main.main(["--config", "config.yaml", "--until", "evaluate"]) == 0
    assert "nothing to do, every phase is complete" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before


def test_nor_is_the_report_made_again(place: Path) -> None:
    """Of all phases; what is printed then is of outputs, which are not kept beside the markers."""
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    assert main.run_phases(load("config.yaml")) == 0
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before


def test_every_fingerprint_is_that_of_the_markers(place: Path) -> None:
    config = compute_dtype.with_recorded_types(load("config.yaml"), RunDirectory("run"))
    table = phases.list_phase_steps(config)
    expected = markers.expected_markers(config, table, corpus_signature(config))
    kept = {path.stem: json.loads(path.read_text()) for path in FINISHED.glob("*.json")}
    assert {name: marker["fingerprint"] for name, marker in kept.items()} == {
        unit.name: expected[unit.name].fingerprint for unit in table
    }
    assert all(markers.is_complete(RunDirectory("run"), u, expected[u.name]) for u in table)


def test_another_setting_is_still_noticed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--config", "config.yaml", "--curricula.frame.width", "0.2"]) == 2
    assert "curricula.frame.width: None then, 0.2 now" in capsys.readouterr().err


def test_a_marker_that_is_gone_leaves_the_rest_current(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where only scores are left to the device, nothing else says what they were made in."""
    for name in ("score", "evaluate-frame", "evaluate-random", "evaluate-own"):
        Path("run", f"{name}.json").unlink()
    asked: list[dict[str, markers.Marker]] = []
    monkeypatch.setattr(main, "_run_phase_steps", lambda *given: asked.append(given[4]) or 0)
    monkeypatch.setattr(hardware, "multiplies_bfloat16", lambda device: True)
    named = [f"--{part}.training.compute_dtype=bfloat16" for part in COMPUTING]
    assert main.main(["--config", "config.yaml", "--until", "partition", *named]) == 0
    assert "auto is bfloat16" in capsys.readouterr().err
    marker = json.loads((FINISHED / "partition.json").read_text())
    assert asked[0]["partition"].fingerprint == marker["fingerprint"]
