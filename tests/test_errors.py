"""How notes and warnings reach people: programs show lines on stderr, libraries log records."""

from __future__ import annotations

import logging

import pytest

from frame_jax.errors import log_to_stderr


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """The package's logger as a library finds it."""
    logger = logging.getLogger("frame_jax")
    for name, value in (("handlers", []), ("level", logging.NOTSET), ("propagate", True)):
        monkeypatch.setattr(logger, name, value)
    return logger


def test_programs_show_notes_as_they_are_and_warnings_marked(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log_to_stderr()
    log_to_stderr()  # entry points call one another
    logger.getChild("scoring").info("a note of 5%")
    logger.getChild("scoring.checks").warning("a file \x1b[2J: %s", "odd")
    captured = capsys.readouterr()
    assert captured.err == "a note of 5%\nwarning: a file \\x1b[2J: odd\n"
    assert captured.out == ""


def test_libraries_hear_records(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "frame_jax"):
        logger.getChild("corpus").info("a note")
    assert [(r.name, r.levelname) for r in caplog.records] == [("frame_jax.corpus", "INFO")]
    assert capsys.readouterr().err == ""
