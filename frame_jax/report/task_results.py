"""The `tasks` of `RUN/evaluation/*.json` in; a table, curves and remarks on them out.

The keys of a score are those that `frame_jax.evaluation.tasks.score_tasks` gives.
"""

from __future__ import annotations

import math
from typing import Any

from frame_jax.report.held_out_results import Result
from frame_jax.report.html import Html, join_html, table, tag

Score = dict[str, Any]
MEAN = "mean of the tasks"
GUESS = "○"  # beside an accuracy that a guess explains


def final_scores(results: dict[str, Result]) -> dict[str, dict[str, Score]]:
    """The scores of every task at the last checkpoint that did it, by task and then by arm."""
    found: dict[str, dict[str, Score]] = {}
    for arm, result in results.items():
        for score in sorted(result.get("tasks", []), key=lambda score: score["step"]):
            found.setdefault(score["task"], {})[arm] = score
    return found


def curve_rows(results: dict[str, Result]) -> list[dict[str, Any]]:
    """Rows of arm, task, step, tokens, stages, accuracy, accuracy_norm, stderr, low, high, chance.

    Only tasks that were done at two checkpoints or more; `low` and `high` are one standard error
    off the accuracy.
    """
    steps: dict[str, set[int]] = {}
    for score in (score for result in results.values() for score in result.get("tasks", [])):
        steps.setdefault(score["task"], set()).add(score["step"])
    rows = []
    for arm, result in results.items():
        for score in result.get("tasks", []):
            if len(steps[score["task"]]) < 2:
                continue
            error = score["accuracy_stderr"]
            rows.append(
                {
                    "arm": arm,
                    "stages": ", ".join(score["stages"]),
                    "stderr": error,
                    "low": score["accuracy"] - (error or 0),
                    "high": score["accuracy"] + (error or 0),
                    **{k: score[k] for k in ("task", "step", "tokens", "accuracy")},
                    **{k: score[k] for k in ("accuracy_norm", "chance")},
                }
            )
    return rows


def mean_score(scores: list[Score]) -> Score:
    """The mean over tasks of one arm, every task counting the same.

    The tasks are independent samples, so the error of the mean is the root of the sum of their
    squared errors, over their number; None where a task has none.
    """

    def error(key: str) -> float | None:
        errors = [score[key] for score in scores]
        if None in errors:
            return None
        return math.sqrt(sum(value**2 for value in errors)) / len(errors)

    found: Score = {
        key: sum(score[key] for score in scores) / len(scores)
        for key in ("accuracy", "accuracy_norm", "chance", "blind")
    }
    return found | {key: error(key) for key in ("accuracy_stderr", "accuracy_norm_stderr")}


def answer_table(finals: dict[str, dict[str, Score]], arms: list[str]) -> Html | None:
    """Bits per byte of the right answers, tasks by arms; None where no task has them."""
    rows = []
    for task, scores in finals.items():
        measured = {a: s for a, s in scores.items() if "answer_bits_per_byte" in s}
        if not measured:
            continue
        best = min(measured, key=lambda arm: measured[arm]["answer_bits_per_byte"])
        rows.append([task, *(bits(measured.get(arm), best=arm == best) for arm in arms)])
    return table(["task", *arms], rows) if rows else None


def bits(score: Score | None, *, best: bool) -> str:
    """Bits per byte with their standard error; the lowest of a task in bold."""
    if score is None:
        return "–"
    error = score["answer_bits_per_byte_stderr"]
    text = f"{score['answer_bits_per_byte']:.4f}" + ("" if error is None else f" ± {error:.4f}")
    return tag("span", text, class_="best" if best else None)


def task_table(finals: dict[str, dict[str, Score]], arms: list[str]) -> Html:
    """Tasks by arms: accuracy and, in brackets, normalised accuracy, each with its error."""
    rows = []
    for task, scores in finals.items():
        any_score = next(iter(scores.values()))  # questions and shots are the same for every arm
        about = f"{any_score['items']:,} questions, {any_score['shots']} shots"
        name = join_html([task, tag("span", f" {about}", class_="note")])
        blind = [percent(any_score["chance"]), percent(any_score["blind"])]
        rows.append([name, *blind, *(score_text(scores.get(a)) for a in arms)])
    if len(finals) > 1:
        whole = [arm for arm in arms if all(arm in scores for scores in finals.values())]
        means = {arm: mean_score([scores[arm] for scores in finals.values()]) for arm in whole}
        if means:
            blind = [percent(means[whole[0]][key]) for key in ("chance", "blind")]
            rows.append([MEAN, *blind, *(score_text(means.get(arm)) for arm in arms)])
    return table(["task", "a guess", "best blind rule", *arms], rows)


def score_text(score: Score | None) -> str:
    """Accuracies in percent, one where both are the same; bold where something was learned.

    That is where an accuracy is more than two errors above what needs no question, a guess or the
    best blind rule. A circle marks one within two errors of a guess.
    """
    if score is None:
        return "–"

    def measured(key: str) -> Html:
        value, error = score[key], score[f"{key}_stderr"]
        text = percent(value) if error is None else f"{percent(value)} ± {percent(error)}"
        guess = error is not None and abs(value - score["chance"]) <= 2 * error
        text += f"\N{NO-BREAK SPACE}{GUESS}" if guess else ""
        learned = error is not None and value - 2 * error > max(score["chance"], score["blind"])
        return tag("span", text, class_="best" if learned else None)

    if score["accuracy"] == score["accuracy_norm"]:  # letters have one length
        return measured("accuracy")
    return join_html([measured("accuracy"), " (", measured("accuracy_norm"), ")"])


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def truncated_prompts(finals: dict[str, dict[str, Score]]) -> str:
    """Which tasks have questions whose prompt did not fit; empty for none."""
    cut = [
        f"{task} {score['truncated']:,} of {score['items']:,}"
        for task, scores in finals.items()
        if (score := next(iter(scores.values())))["truncated"]
    ]
    return f"Prompts that lost their beginning to fit: {'; '.join(cut)}." if cut else ""
