"""The command line on small inputs: plans, mistakes."""

from pathlib import Path

import pytest

from frame_jax.main import main
from tests.integration.small_run import write_config, write_corpus


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus.jsonl")
    return write_config(tmp_path)


def test_a_plan_starts_nothing(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(config), "--plan", "--tokens_per_second", "1000"]) == 0
    shown = capsys.readouterr().out
    for expected in ("tokenize", "to do", "frame", "random", "Q3", "learning rate", "FLOPs"):
        assert expected in shown
    assert not (config.parent / "run").exists()


def test_a_plan_after_tokenizing_counts_what_is_there(config: Path, capsys) -> None:
    assert main(["--config", str(config), "--until", "tokenize"]) == 0
    assert main(["--config", str(config), "--plan"]) == 0
    shown = capsys.readouterr().out
    assert "complete" in shown and "counted by the tokenize phase" in shown


def test_broken_records_stop_the_run_with_the_place_to_look(config: Path, capsys) -> None:
    with (config.parent / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "x", "text": \n' * 20)
    assert main(["--config", str(config), "--until", "tokenize"]) == 2
    message = capsys.readouterr().err
    assert "error:" in message and "rejected.jsonl" in message and "Traceback" not in message


def test_a_missing_corpus_is_named(config: Path, capsys) -> None:
    (config.parent / "corpus.jsonl").unlink()
    assert main(["--config", str(config)]) == 2
    assert "corpus.jsonl" in capsys.readouterr().err
    assert not (config.parent / "run").exists()


def test_unknown_phases_are_refused(config: Path, capsys) -> None:
    assert main(["--config", str(config), "--redo", "scores"]) == 2
    assert "choose one of" in capsys.readouterr().err
    assert main(["--config", str(config), "--until", "scores"]) == 2


@pytest.mark.slow
def test_redo_repeats_a_phase(config: Path, capsys) -> None:
    assert main(["--config", str(config), "--until", "tokenize"]) == 0
    marker = (config.parent / "run/tokenize.json").stat().st_mtime_ns
    arguments = ["--config", str(config), "--until", "tokenize", "--corpus.parts=2"]
    assert main(arguments) == 2
    assert "corpus.parts: 3 then, 2 now" in capsys.readouterr().err
    assert main([*arguments, "--redo", "tokenize"]) == 0
    assert (config.parent / "run/tokenize.json").stat().st_mtime_ns > marker
    assert len(list((config.parent / "run/tokens").glob("part-*.arrayrecord"))) == 2
