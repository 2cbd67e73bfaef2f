"""Multiple-choice tasks in, a trial's accuracies at its kept checkpoints out.

Items are scored in parts that processes share: RUN/evaluation/<trial>/<weights>/tasks/
<task>-<fingerprint>/part-*.parquet, one row an item, with the columns item (its place in the task),
subject, answer (index), nll (list, nats, a sum for each choice), bytes (list, UTF-8 of each choice)
and truncated (whether the prompt lost its beginning). The fingerprint is of the task's settings and
files, so parts of another definition are never taken for this one's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.config.evaluation import TaskConfig
from frame_jax.config.paths import user_path
from frame_jax.config.run import RunConfig
from frame_jax.corpus.tokenizer import Tokenizer, load_tokenizer
from frame_jax.errors import UserError
from frame_jax.evaluation.checkpoint_scorer import Weights, checkpoint_scorers
from frame_jax.evaluation.items import (
    Item,
    answers_to_rate,
    blind_accuracy,
    make_prompts,
    read_items,
    spread_items,
)
from frame_jax.evaluation.likelihood import continuation_sums, encode_requests
from frame_jax.parallel import processes
from frame_jax.run import progress
from frame_jax.run.directory import RunDirectory, atomic_path, part_name
from frame_jax.scoring.scorer import Scorer

ITEMS_PER_PART = 512


def score_tasks(
    config: RunConfig,
    directory: RunDirectory,
    trial: str,
    trial_record: dict[str, Any],
    means: Sequence[Weights] = (),
) -> list[dict[str, Any]]:
    """Scores the tasks of a config; called on every process.

    Args:
        config: The run.
        directory: The run.
        trial: The trial.
        trial_record: Its curriculum.json.
        means: Averages of its weights that do the tasks too.

    Returns:
        What RUN/evaluation/<trial>.json holds under `tasks`: for each checkpoint and task
        {step, tokens (trained on), stages (names of those that end there), average (its name, for
        an average alone), folder (of the parts, below the run directory), task, shots, items,
        answer_bits_per_byte, answer_bits_per_byte_stderr, chance, blind, accuracy, accuracy_stderr,
        accuracy_norm, accuracy_norm_stderr, truncated
        (items whose prompt did not fit), subjects}. `answer_bits_per_byte` is the surprise at the
        right answers, bits over UTF-8 bytes, which has more signal in small models than any count
        of right ones (arXiv 2508.13144). `chance` is what a guess scores, `blind` the
        best rule that reads no question (`items.blind_accuracy`). `accuracy` takes the choice with
        the largest log-likelihood, `accuracy_norm` that with the largest log-likelihood a UTF-8
        byte. A standard error is that of a mean over independent items (null for a single item).
        `subjects` is {subject: {items, accuracy, accuracy_norm}}, empty where there is only one.

    Raises:
        UserError: for files that are missing or hold something else than items.
    """
    tasks = config.evaluation.tasks
    if not tasks:
        return []
    items = {
        task.name: spread_items(read_items(user_path(task.path)), task.max_items) for task in tasks
    }
    at = [*map(Weights.of_step, task_steps(trial_record, config.evaluation.tasks_at)), *means]
    root = directory.evaluation(trial).with_suffix("")
    parts = [
        part
        for weights in at
        for task in tasks
        for part in task_parts(root, weights, task, len(items[task.name]))
    ]
    missing = [part for part in parts if not part.path.exists()]
    # Every process sees the same missing parts, because none writes before all have looked.
    processes.barrier(f"tasks {trial}: parts listed")
    if missing:
        score_missing(config, directory, trial, missing, items)
    processes.barrier(f"tasks {trial}: parts written")
    blind = {name: blind_accuracy(found) for name, found in items.items()}
    return [
        {
            **weights_position(trial_record, weights),
            "blind": blind[task.name],
            "folder": str(task_folder(root, weights, task).relative_to(directory.root)),
            **task_result(task, [p.path for p in parts if (p.weights, p.task) == (weights, task)]),
        }
        for weights in at
        for task in tasks
    ]


class Part(NamedTuple):
    """Items of a task that are scored in one go under the same weights.

    Attributes:
        weights: Whose.
        task: The task.
        first: Index of the first item.
        stop: One past the last.
        path: Where the results go.
    """

    weights: Weights
    task: TaskConfig
    first: int
    stop: int
    path: Path


def task_folder(root: Path, weights: Weights, task: TaskConfig) -> Path:
    """Where the parts of a task go, below the folder of the trial's results."""
    return root / weights.name / "tasks" / f"{task.name}-{task_fingerprint(task)}"


def task_parts(root: Path, weights: Weights, task: TaskConfig, items: int) -> list[Part]:
    """The parts of a task under the same weights."""
    folder = task_folder(root, weights, task)
    count = -(-items // ITEMS_PER_PART)
    starts = range(0, items, ITEMS_PER_PART)
    return [
        Part(
            weights,
            task,
            first,
            min(first + ITEMS_PER_PART, items),
            folder / part_name(index, count, ".parquet"),
        )
        for index, first in enumerate(starts)
    ]


def task_fingerprint(task: TaskConfig) -> str:
    """Changes with the settings of a task and with the content of its files."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(task), sort_keys=True).encode())
    for path in (task.path, task.examples):
        if path is not None and (file := user_path(path)).is_file():
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:8]


def task_steps(trial_record: dict[str, Any], tasks_at: str) -> list[int]:
    """The checkpoints that do the tasks, ascending."""
    ends = (
        {stage["last_step"] for stage in trial_record["stages"]}
        if tasks_at == "stage_ends"
        else set()
    )
    return sorted(ends | {trial_record["steps"]})


def weights_position(trial_record: dict[str, Any], weights: Weights) -> dict[str, Any]:
    """Where weights lie in their run."""
    step = weights.step
    return {
        "step": step,
        "tokens": step * trial_record["batch_size"] * trial_record["sequence_length"],
        "stages": [stage["name"] for stage in trial_record["stages"] if stage["last_step"] == step],
        **({"average": weights.name} if len(weights.steps) > 1 else {}),
    }


def score_missing(
    config: RunConfig,
    directory: RunDirectory,
    trial: str,
    missing: list[Part],
    items: dict[str, list[Item]],
) -> None:
    """Writes this process's share of the missing parts."""
    share = processes.local_share(missing)
    tokenizer = load_tokenizer(directory)
    total = sum(part.stop - part.first for part in share)
    title = f"tasks {trial}"
    with progress.progress_bar(title, total, "items", show=processes.is_first()) as update:
        wanted = list(dict.fromkeys(part.weights for part in missing))
        folder = directory.pretrain(trial)
        ema = config.evaluation.ema
        for each, scorer in checkpoint_scorers(config.scoring, folder, wanted, ema=ema):
            for part in (part for part in share if part.weights == each):
                chosen = items[part.task.name][part.first : part.stop]
                columns = score_items(scorer, tokenizer, part.task, chosen)
                columns["item"] = np.arange(part.first, part.stop)
                with atomic_path(part.path) as temporary:
                    pq.write_table(pa.table(columns), temporary, compression="zstd")
                update(len(chosen), f"weights {each.name} {part.task.name}")


def score_items(
    scorer: Scorer, tokenizer: Tokenizer, task: TaskConfig, items: list[Item]
) -> dict[str, Any]:
    """The columns of a part, but for `item`.

    Raises:
        UserError: if a log-likelihood is not finite.
    """
    rated = [answers_to_rate(task, item) for item in items]
    pairs = [
        (prompt, task.separator + answer)
        for prompt, choices in zip(make_prompts(task, items), rated, strict=True)
        for answer in choices
    ]
    requests = encode_requests(tokenizer, pairs)
    nll = continuation_sums(scorer, requests, len(requests))[0]
    if not np.isfinite(nll).all():
        raise UserError(
            f"evaluation.tasks: {task.name}: a log-likelihood is not a number; the checkpoint has "
            "diverged: lower pretrain.training.lr_schedule.peak and train again"
        )
    ends = np.cumsum([len(choices) for choices in rated])
    truncated = [len(r.prompt) + len(r.continuation) > scorer.context + 1 for r in requests]
    return {
        "subject": [item.subject for item in items],
        "answer": [item.answer for item in items],
        "nll": [part.tolist() for part in np.split(nll, ends[:-1])],
        "bytes": [[len(answer.encode()) for answer in choices] for choices in rated],
        "truncated": [bool(part.any()) for part in np.split(np.array(truncated), ends[:-1])],
    }


def task_result(task: TaskConfig, paths: list[Path]) -> dict[str, Any]:
    """Accuracies of a task at one checkpoint, from its parts; see `score_tasks` for the keys."""
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    right = np.array([int(np.argmin(row["nll"])) == row["answer"] for row in rows])
    norm = np.array(
        [int(np.argmin(np.divide(row["nll"], row["bytes"]))) == row["answer"] for row in rows]
    )
    bits = np.array([row["nll"][row["answer"]] for row in rows]) / math.log(2)
    size = np.array([row["bytes"][row["answer"]] for row in rows])
    subjects = np.array([row["subject"] for row in rows])
    names = sorted(set(subjects.tolist()))
    return {
        "task": task.name,
        "num_fewshot": task.num_fewshot,
        "items": len(rows),
        "answer_bits_per_byte": float(bits.sum() / size.sum()),
        "answer_bits_per_byte_stderr": ratio_error(bits, size),
        "chance": float(np.mean([1 / len(row["nll"]) for row in rows])),
        "accuracy": float(right.mean()),
        "accuracy_stderr": standard_error(right),
        "accuracy_norm": float(norm.mean()),
        "accuracy_norm_stderr": standard_error(norm),
        "truncated": sum(row["truncated"] for row in rows),
        "subjects": {
            name: {
                "items": int((subjects == name).sum()),
                "accuracy": float(right[subjects == name].mean()),
                "accuracy_norm": float(norm[subjects == name].mean()),
            }
            for name in (names if len(names) > 1 else [])
        },
    }


def standard_error(right: np.ndarray) -> float | None:
    """Standard error of the mean of [n] booleans; None for one."""
    return float(right.std(ddof=1) / math.sqrt(len(right))) if len(right) > 1 else None


def ratio_error(values: np.ndarray, sizes: np.ndarray) -> float | None:
    """Standard error of sum(values) / sum(sizes) over independent items; None for one."""
    if len(values) < 2:
        return None
    off = values - values.sum() / sizes.sum() * sizes
    return float(math.sqrt((off**2).sum()) / sizes.sum())
