"""Tables of the scores in multiple-choice tasks."""

import dataclasses
import math
from typing import Any

from frame_jax.evaluation.results import TaskScore, TrialResult
from frame_jax.report.html import Html, join_html, table, tag
from frame_jax.report.study_results import DASH

MEAN = "mean of the tasks"
GUESS = "○"  # beside an accuracy that a guess explains
FinalScores = dict[str, dict[str, TaskScore]]  # by task and then by arm


def final_scores(results: dict[str, TrialResult]) -> FinalScores:
    """The scores of every task at the last checkpoint that did it."""
    found: FinalScores = {}
    for arm, result in results.items():
        averages = {average.name for average in result.averages}
        for score in sorted(result.tasks, key=lambda score: score.step):
            if score.weights not in averages:
                found.setdefault(score.task, {})[arm] = score
    return found


def mean_score(scores: list[TaskScore]) -> TaskScore:
    """The mean over tasks of one arm, every task counting the same.

    The tasks are independent samples, so the error of the mean is the root of the sum of their
    squared errors, over their number; None where a task has none.
    """
    means: dict[str, Any] = {
        key: sum(getattr(score, key) for score in scores) / len(scores)
        for key in ("accuracy", "accuracy_norm", "chance", "blind")
    }
    for key in ("accuracy_stderr", "accuracy_norm_stderr"):
        errors = [getattr(score, key) for score in scores]
        means[key] = None if None in errors else math.hypot(*errors) / len(errors)
    return dataclasses.replace(scores[0], **means)


def answer_table(finals: FinalScores, arms: list[str]) -> Html:
    """Bits per byte of the right answers with their errors, the lowest of a task in bold."""
    rows = []
    for task, scores in finals.items():
        best = min(scores, key=lambda arm: scores[arm].answer_bits_per_byte)
        columns = []
        for arm in arms:
            text = DASH
            if (score := scores.get(arm)) is not None:
                text, error = f"{score.answer_bits_per_byte:.4f}", score.answer_bits_per_byte_stderr
                text += "" if error is None else f" ± {error:.4f}"
            columns.append(tag("span", text, class_="best" if arm == best else None))
        rows.append([task, *columns])
    return table(["task", *arms], rows)


def task_table(finals: FinalScores, arms: list[str]) -> Html:
    """Tasks by arms: accuracy and, in brackets, normalised accuracy, each with its error."""
    lines: list[tuple[str, dict[str, TaskScore]]] = []
    for task, scores in finals.items():
        score = next(iter(scores.values()))  # questions and examples are the same for every arm
        about = f" {score.items:,} questions, {score.num_fewshot} shots"
        lines.append((join_html([task, tag("span", about, class_="note")]), scores))
    whole = [arm for arm in arms if all(arm in scores for scores in finals.values())]
    if len(finals) > 1 and whole:
        means = {arm: mean_score([scores[arm] for scores in finals.values()]) for arm in whole}
        lines.append((MEAN, means))
    rows = []
    for name, scores in lines:
        score = next(iter(scores.values()))
        columns = [score_text(scores[arm]) if arm in scores else DASH for arm in arms]
        rows.append([name, percent(score.chance), percent(score.blind), *columns])
    return table(["task", "a guess", "best blind rule", *arms], rows)


def score_text(score: TaskScore) -> Html:
    """Accuracies in percent, one where both are the same; bold where something was learned.

    That is where an accuracy is more than two errors above what needs no question, a guess or the
    best blind rule. A circle marks one within two errors of a guess.
    """

    def measured(value: float, error: float | None) -> Html:
        text = percent(value) if error is None else f"{percent(value)} ± {percent(error)}"
        guess = error is not None and abs(value - score.chance) <= 2 * error
        text += f"\N{NO-BREAK SPACE}{GUESS}" if guess else ""
        learned = error is not None and value - 2 * error > max(score.chance, score.blind)
        return tag("span", text, class_="best" if learned else None)

    plain = measured(score.accuracy, score.accuracy_stderr)
    if score.accuracy == score.accuracy_norm:  # letters have one length
        return plain
    norm = measured(score.accuracy_norm, score.accuracy_norm_stderr)
    return join_html([plain, " (", norm, ")"])


def percent(share: float) -> str:
    """A share in percent, to a tenth."""
    return f"{100 * share:.1f}"


def truncated_prompts(finals: FinalScores) -> str:
    """A sentence on the tasks that have questions whose prompt did not fit; empty for none."""
    counts = [
        f"{task} {score.truncated:,} of {score.items:,}"
        for task, scores in finals.items()
        if (score := next(iter(scores.values()))).truncated
    ]
    return f"Prompts that lost their beginning to fit: {'; '.join(counts)}." if counts else ""
