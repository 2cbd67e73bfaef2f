"""A bar where there is a terminal, plain lines where there is none."""

import os
import pty
import subprocess
import sys

SCRIPT = """
from frame_jax.run import progress
with progress.progress_bar("score", 1000, "tokens", done=200) as update:
    for _ in range(4):
        update(200, "part 3")
with progress.progress_bar("silent", 10, "tokens", show=False) as update:
    update(10)
"""


def test_without_a_terminal_there_are_plain_lines() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("score: 100% 1,000 tokens, ") and line.endswith(" s left part 3")
    assert "tokens/s" in line and line.isprintable()


def test_lines_come_now_and_then_with_the_time_left(monkeypatch, capsys) -> None:
    from frame_jax.run import progress

    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with progress.progress_bar("score", 1000, "tokens", done=200) as update:
        for _ in range(6):
            clock[0] += 10
            update(100)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "score: 40% 400 tokens",
        "score: 60% 600 tokens",
        "score: 80% 800 tokens",
        "score: 80% 800 tokens",  # the end
    ]
    assert "10 tokens/s, 60 s left" in lines[0]  # what was done before does not count as speed


def test_on_a_terminal_there_is_a_bar() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:
        pass  # Linux reports the other end's close so
    os.close(ours)
    assert process.wait() == 0
    text = shown.decode()
    assert "\x1b[" in text and "100%" in text and "part 3" in text and "silent" not in text
