"""The table of right answers' bits per byte."""

from __future__ import annotations

import re

from frame_jax.evaluation.results import TaskScore, TrialResult
from frame_jax.report.task_results import answer_table, final_scores
from tests.report.synthetic import make_score


def score(task: str, step: int, bits: float, error: float | None = 0.01) -> TaskScore:
    values = {"answer_bits_per_byte": bits, "answer_bits_per_byte_stderr": error}
    return make_score(task, step, 0.5, error, **values)


def quadrants(html: str) -> list[list[str]]:
    return [
        [re.sub("<[^>]+>", "", quadrant) for quadrant in re.findall(r"<t[dh].*?</t[dh]>", row)]
        for row in re.findall(r"<tr>.*?</tr>", html, re.DOTALL)
    ]


def test_answers_have_a_line_a_task_and_the_lowest_in_bold() -> None:
    tasks = {
        "frame": (score("a", 5, 9.0), score("a", 10, 1.25), score("b", 10, 0.5, None)),
        "random": (score("a", 10, 1.125),),
    }
    results = {arm: TrialResult(arm, (), tasks=own) for arm, own in tasks.items()}
    shown = answer_table(final_scores(results), ["frame", "random"])
    assert quadrants(shown) == [
        ["task", "frame", "random"],
        ["a", "1.2500 ± 0.0100", "1.1250 ± 0.0100"],  # of the last checkpoint
        ["b", "0.5000", "–"],  # one item has no error
    ]
    assert re.findall(r'class="best">([^<]+)<', shown) == ["1.1250 ± 0.0100", "0.5000"]
