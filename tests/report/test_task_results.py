"""The table of right answers' bits per byte."""

from __future__ import annotations

import re
from typing import Any

from frame_jax.report.task_results import answer_table, final_scores


def score(task: str, step: int, bits: float | None, error: float | None = 0.01) -> dict[str, Any]:
    found: dict[str, Any] = {"task": task, "step": step, "accuracy": 0.5}
    if bits is not None:
        found |= {"answer_bits_per_byte": bits, "answer_bits_per_byte_stderr": error}
    return found


def quadrants(html: str) -> list[list[str]]:
    return [
        [re.sub("<[^>]+>", "", quadrant) for quadrant in re.findall(r"<t[dh].*?</t[dh]>", row)]
        for row in re.findall(r"<tr>.*?</tr>", html, re.DOTALL)
    ]


def test_answers_have_a_line_a_task_and_the_lowest_in_bold() -> None:
    results = {
        "frame": {"tasks": [score("a", 5, 9.0), score("a", 10, 1.25), score("b", 10, 0.5, None)]},
        "random": {"tasks": [score("a", 10, 1.125), score("c", 10, None)]},
    }
    shown = answer_table(final_scores(results), ["frame", "random"])
    assert shown is not None
    assert quadrants(shown) == [
        ["task", "frame", "random"],
        ["a", "1.2500 ± 0.0100", "1.1250 ± 0.0100"],  # of the last checkpoint
        ["b", "0.5000", "–"],  # one item has no error
    ]
    assert re.findall(r'class="best">([^<]+)<', shown) == ["1.1250 ± 0.0100", "0.5000"]


def test_runs_that_did_not_measure_answers_have_no_such_table() -> None:
    assert (
        answer_table(final_scores({"frame": {"tasks": [score("a", 1, None)]}}), ["frame"]) is None
    )
    assert answer_table({}, ["frame"]) is None
