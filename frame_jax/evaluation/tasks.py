"""Scores multiple-choice tasks under a trial's final weights and averages.

Items are scored in parts that processes share: RUN/evaluation/<trial>/<weights>/tasks/
<task>-<fingerprint>/part-*.parquet, one row an item, with the columns item (its index in the task),
subject, answer (index), nll (list, nats, a sum for each choice), bytes (list, UTF-8 of each choice)
and truncated (whether the prompt lost its beginning). The fingerprint is of the task's settings and
files, so parts of another definition are never taken for this one's.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from frame_jax.config.evaluation import TaskConfig
from frame_jax.config.paths import user_path
from frame_jax.config.run import RunConfig
from frame_jax.corpus.tokenizer import Tokenizer, load_tokenizer
from frame_jax.evaluation.items import (
    Item,
    answers_to_rate,
    blind_accuracy,
    make_prompts,
    read_items,
    spread_items,
)
from frame_jax.evaluation.likelihood import continuation_sums, encode_requests
from frame_jax.evaluation.results import TaskScore, scores_folder
from frame_jax.evaluation.weights import Part, Weights, write_missing_parts
from frame_jax.run.directory import RunDirectory, file_sha256, part_name
from frame_jax.run.trial_record import TrialRecord
from frame_jax.scoring.scorer import Scorer

ITEMS_PER_PART = 512


class TaskItems(NamedTuple):
    """Consecutive items of a task, from the one with index `first` on."""

    task: TaskConfig
    first: int
    items: list[Item]


def score_tasks(
    config: RunConfig,
    directory: RunDirectory,
    trial: str,
    record: TrialRecord,
    means: Sequence[Weights] = (),
) -> list[TaskScore]:
    """Scores each task of a config under the final weights, under those that training started from
    where they are a trained model's, and under each of `means`. Called on every process.

    Raises:
        UserError: for files that are missing or hold something else than items, and for a
            log-likelihood that is not finite.
    """
    if not config.evaluation.tasks:
        return []
    tasks = [
        TaskItems(task, 0, spread_items(read_items(user_path(task.path)), task.max_items))
        for task in config.evaluation.tasks
    ]
    steps = [record.steps] if config.pretrain.initial is None else [0, record.steps]
    at = [*map(Weights.of_step, steps), *means]
    planned = [
        (weights, task, task_parts(directory, trial, weights, task))
        for weights in at
        for task in tasks
    ]
    tokenizer = load_tokenizer(directory)

    def measure(scorer: Scorer, part: Part, report: Callable[[int], None]) -> dict[str, Any]:
        task, first, items = part.work
        columns = score_items(scorer, tokenizer, task, items)
        report(len(items))
        return {**columns, "item": np.arange(first, first + len(items))}

    parts = [part for _, _, own in planned for part in own]
    title = f"tasks {trial}"
    write_missing_parts(config, directory, trial, parts, measure, title=title, unit="items")
    return [
        task_score(directory, record, weights, task, [part.path for part in own])
        for weights, task, own in planned
    ]


def task_parts(
    directory: RunDirectory, trial: str, weights: Weights, task: TaskItems
) -> list[Part]:
    """Divides a task under some weights into parts of `ITEMS_PER_PART` items."""
    config, _, items = task
    folder = scores_folder(directory, trial, weights.name) / "tasks"
    folder /= f"{config.name}-{task_fingerprint(config)}"
    note, starts = f"weights {weights.name} {config.name}", range(0, len(items), ITEMS_PER_PART)
    parts = []
    for index, first in enumerate(starts):
        work = TaskItems(config, first, items[first : first + ITEMS_PER_PART])
        path = folder / part_name(index, len(starts), ".parquet")
        parts.append(Part(weights, path, work, len(work.items), note))
    return parts


def task_fingerprint(task: TaskConfig) -> str:
    """A hash of the settings of a task and of the content of its files."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(task), sort_keys=True).encode())
    for path in (task.path, task.examples):
        if path is not None and (file := user_path(path)).is_file():
            digest.update(bytes.fromhex(file_sha256(file)))
    return digest.hexdigest()[:8]


def score_items(
    scorer: Scorer, tokenizer: Tokenizer, task: TaskConfig, items: list[Item]
) -> dict[str, Any]:
    """Rates every choice of some items; returns the columns of a part, but for `item`."""
    rated = [answers_to_rate(task, item) for item in items]
    pairs = [
        (prompt, task.separator + answer)
        for prompt, choices in zip(make_prompts(task, items), rated, strict=True)
        for answer in choices
    ]
    requests = encode_requests(tokenizer, pairs)
    nll = continuation_sums(scorer, requests)[0]
    ends = np.cumsum([len(choices) for choices in rated])
    truncated = [len(r.prompt) + len(r.continuation) > scorer.context + 1 for r in requests]
    return {
        "subject": [item.subject for item in items],
        "answer": [item.answer for item in items],
        "nll": [part.tolist() for part in np.split(nll, ends[:-1])],
        "bytes": [[len(answer.encode()) for answer in choices] for choices in rated],
        "truncated": [bool(part.any()) for part in np.split(np.array(truncated), ends[:-1])],
    }


def task_score(
    directory: RunDirectory,
    record: TrialRecord,
    weights: Weights,
    task: TaskItems,
    paths: Sequence[Path],
) -> TaskScore:
    """Computes a task's accuracies under some weights from its parts at `paths`."""
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    answers = np.array([row["answer"] for row in rows])
    nll, sizes = ([np.array(row[key]) for row in rows] for key in ("nll", "bytes"))
    right = np.array([choice.argmin() for choice in nll]) == answers
    norm = np.array([(n / b).argmin() for n, b in zip(nll, sizes, strict=True)]) == answers
    bits = np.array([n[answer] for n, answer in zip(nll, answers, strict=True)]) / math.log(2)
    size = np.array([b[answer] for b, answer in zip(sizes, answers, strict=True)])
    return TaskScore(
        weights=weights.name,
        step=weights.step,
        tokens=weights.step * record.tokens_per_step,
        stages=tuple(stage.name for stage in record.stages if stage.last_step == weights.step),
        folder=str(paths[0].parent.relative_to(directory.root)),
        task=task.task.name,
        num_fewshot=task.task.num_fewshot,
        items=len(rows),
        answer_bits_per_byte=float(bits.sum() / size.sum()),
        answer_bits_per_byte_stderr=ratio_error(bits, size),
        chance=float(np.mean([1 / len(choices) for choices in nll])),
        blind=blind_accuracy(task.items),
        accuracy=float(right.mean()),
        accuracy_stderr=standard_error(right),
        accuracy_norm=float(norm.mean()),
        accuracy_norm_stderr=standard_error(norm),
        truncated=sum(row["truncated"] for row in rows),
    )


def standard_error(right: np.ndarray) -> float | None:
    """Standard error of the mean of [n] booleans; None for one."""
    return float(right.std(ddof=1) / math.sqrt(len(right))) if len(right) > 1 else None


def ratio_error(values: np.ndarray, sizes: np.ndarray) -> float | None:
    """Standard error of sum(values) / sum(sizes) over independent items; None for one."""
    if len(values) < 2:
        return None
    off = values - values.sum() / sizes.sum() * sizes
    return float(math.sqrt((off**2).sum()) / sizes.sum())
