"""`compute_dtype: auto`: what the run has begun in, else what the device multiplies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frame_jax import main
from frame_jax.config.file import parse
from frame_jax.config.run import RunConfig
from frame_jax.config.settings import flatten_settings, setting_at
from frame_jax.parallel import hardware, processes
from frame_jax.run import compute_dtype
from frame_jax.run.directory import RunDirectory, write_json
from tests.integration.small_run import write_config, write_corpus

KEYS = [
    "reference.weak.training.compute_dtype",
    "reference.strong.training.compute_dtype",
    "scoring.compute_dtype",
    "pretrain.training.compute_dtype",
]


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def config(directory: RunDirectory, *overrides: str) -> RunConfig:
    source = '--corpus.sources=[{"kind": "python_library"}]'
    return parse([f"--run_directory={directory.root}", source, *overrides])[0]


def types(config: RunConfig) -> list[str]:
    return [setting_at(config, key) for key in KEYS]


def begin(directory: RunDirectory, unit: str, key: str, value: str) -> None:
    write_json(directory.marker(unit), {"settings": {key: value}})


def on(monkeypatch: pytest.MonkeyPatch, *, bfloat16: bool) -> None:
    """Makes this machine one that has products of bfloat16, or has not."""
    monkeypatch.setattr(hardware, "multiplies_bfloat16", lambda device: bfloat16)


def test_every_type_is_left_to_the_device_by_default(directory: RunDirectory) -> None:
    settings = flatten_settings(config(directory))
    assert sorted(compute_dtype.undecided_keys(settings)) == sorted(KEYS)
    assert {key for key in settings if key.endswith("compute_dtype")} == set(KEYS)


def test_nothing_is_known_before_something_has_begun(directory: RunDirectory) -> None:
    begin(directory, "tokenize", "seed", "0")
    assert types(compute_dtype.with_recorded_types(config(directory), directory)) == ["auto"] * 4


def test_what_has_begun_in_one_type_goes_on_in_it(directory: RunDirectory) -> None:
    begin(directory, "reference-weak", KEYS[0], "float32")
    assert types(compute_dtype.with_recorded_types(config(directory), directory)) == ["float32"] * 4
    named = config(directory, "--scoring.compute_dtype=bfloat16")
    assert types(compute_dtype.with_recorded_types(named, directory))[2:] == ["bfloat16", "float32"]


def test_a_setting_has_the_type_of_its_own_marker(directory: RunDirectory) -> None:
    begin(directory, "reference-weak", KEYS[0], "bfloat16")
    begin(directory, "evaluate-frame", KEYS[2], "float32")
    expected = ["bfloat16", "bfloat16", "float32", "bfloat16"]
    assert types(compute_dtype.with_recorded_types(config(directory), directory)) == expected


@pytest.mark.parametrize("bfloat16", [True, False])
def test_the_device_decides_what_is_open(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, bfloat16: bool
) -> None:
    on(monkeypatch, bfloat16=bfloat16)
    expected = "bfloat16" if bfloat16 else "float32"
    given = config(directory, "--scoring.compute_dtype=float32")
    found, said = compute_dtype.decide_types(given, given)
    assert types(found) == [expected, expected, "float32", expected]
    assert said == [f"compute_dtype: auto is {expected} on cpu"]


def test_a_machine_that_would_choose_otherwise_is_named(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(directory, "score", KEYS[2], "bfloat16")
    given = config(directory)
    so_far = compute_dtype.with_recorded_types(given, directory)
    on(monkeypatch, bfloat16=True)
    found, said = compute_dtype.decide_types(given, so_far)
    assert types(found) == ["bfloat16"] * 4 and not said
    on(monkeypatch, bfloat16=False)
    found, said = compute_dtype.decide_types(given, so_far)
    assert types(found) == ["bfloat16"] * 4
    message = "\n".join(said)
    assert f"{KEYS[2]}: auto stays bfloat16" in message and "--redo" in message


def test_every_process_computes_as_the_first(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Process 1, whose host has no such products, or has not yet seen a marker."""
    on(monkeypatch, bfloat16=False)
    monkeypatch.setattr(processes, "broadcast_from_first", lambda value: "bfloat16")
    monkeypatch.setattr(processes, "is_first", lambda: False)
    given = config(directory)
    assert types(compute_dtype.decide_types(given, given)[0]) == ["bfloat16"] * 4
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_run_keeps_its_type_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    command = ["--config", str(write_config(tmp_path)), "--until", "reference"]
    command += ["--reference.weak.training.steps=2", "--reference.strong.training.steps=2"]
    on(monkeypatch, bfloat16=False)
    assert main.main(command) == 0
    run = tmp_path / "run"
    settings = json.loads((run / "reference-weak.json").read_text())["settings"]
    assert settings[KEYS[0]] == "float32"
    assert "compute_dtype: auto" not in (run / "config.yaml").read_text()
    on(monkeypatch, bfloat16=True)
    assert main.main(command) == 0
    assert "nothing to do" in capsys.readouterr().err
    (run / "reference-strong.json").unlink()
    assert main.main(command) == 0
    assert "auto stays float32" in capsys.readouterr().err
    settings = json.loads((run / "reference-strong.json").read_text())["settings"]
    assert settings[KEYS[1]] == "float32"
