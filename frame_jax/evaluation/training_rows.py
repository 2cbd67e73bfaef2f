"""Measures a trial's final loss on rows that it was trained on, by when it was trained on them.

Reads RUN/pretrain/<trial>/ and RUN/quadrants. Writes RUN/evaluation/<trial>/<step>/training_rows/
N/part-*.parquet, N the rows asked for: a line a row, with quadrant, row (its index among the
quadrant's), step (the last that trained on it), predicted_tokens and nll (sum, nats). Every trial
of a seed is measured on the same rows, so that what makes a row hard cancels between two trials,
and what is left is when each was trained on it (the question of arXiv 2509.25380). [ours]
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from frame_jax.config.run import RunConfig
from frame_jax.curriculum.loader import QuadrantRows
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.evaluation.results import TrainingRowsResult, scores_folder
from frame_jax.evaluation.weights import Part, Weights, write_missing_parts
from frame_jax.run.directory import RunDirectory, part_name
from frame_jax.run.special_tokens import SpecialTokens, read_special_tokens
from frame_jax.run.trial_record import load_trial_record
from frame_jax.scoring.scorer import Scorer
from frame_jax.training.phases import trial_order
from frame_jax.training.train_step import make_lm_batch

ROWS_PER_PART = 256
SELECTED_AT_ONCE = 1 << 18
BINS = 20  # of a run, in the report


class Sample(NamedTuple):
    """Rows that a trial was trained on, sorted by quadrant and row: index of the quadrant, index
    among its rows, and the last step that trained on it; each int64 [n]."""

    quadrant: np.ndarray
    row: np.ndarray
    step: np.ndarray


def measure_training_rows(
    config: RunConfig, directory: RunDirectory, trial: str
) -> TrainingRowsResult | None:
    """Measures the final weights of a trial; called on every process. None where no rows are asked
    for."""
    asked = config.evaluation.training_rows
    if asked == 0:
        return None
    selection, row_files = trial_order(config, directory, config.trial(trial))
    record = load_trial_record(directory.pretrain(trial))
    final = Weights.of_step(record.steps)
    sample = choose_rows(selection, asked, record.batch_size)
    folder = scores_folder(directory, trial, final.name) / "training_rows" / str(asked)
    starts, parts = range(0, len(sample.row), ROWS_PER_PART), []
    for index, first in enumerate(starts):
        work = Sample(*(column[first:][:ROWS_PER_PART] for column in sample))
        path = folder / part_name(index, len(starts), ".parquet")
        parts.append(Part(final, path, work, size=1, note=""))
    names = selection.schedule.quadrants
    training_rows = QuadrantRows([row_files[name] for name in names])
    special_tokens = read_special_tokens(directory)
    document_attention = config.pretrain.training.document_attention

    def measure(scorer: Scorer, part: Part, report: Callable[[int], None]) -> dict[str, Any]:
        quadrant, row, step = part.work
        rows = np.zeros((len(row), record.sequence_length + 1), np.int32)
        training_rows.read_into(rows, np.arange(len(row)), quadrant, row)
        tokens, nll = score_rows(scorer, rows, special_tokens, document_attention)
        report(1)
        columns = {"quadrant": [names[index] for index in quadrant], "row": row, "step": step}
        return {**columns, "predicted_tokens": tokens, "nll": nll}

    title = f"training rows {trial}"
    write_missing_parts(config, directory, trial, parts, measure, title=title, unit="parts")
    return TrainingRowsResult(len(sample.row), str(folder.relative_to(directory.root)))


def choose_rows(selection: SelectionMap, count: int, batch_size: int) -> Sample:
    """Samples about `count` of the rows in use: every k-th of each quadrant, for any order."""
    stride = max(1, selection.schedule.epoch_rows // count)
    found = []
    for first in range(0, len(selection), SELECTED_AT_ONCE):
        index = np.arange(first, min(first + SELECTED_AT_ONCE, len(selection)))
        quadrant, row = selection.select(index)
        chosen = row % stride == 0
        found.append(np.stack([quadrant[chosen], row[chosen], index[chosen] // batch_size]))
    quadrant, row, step = np.concatenate(found, axis=1)
    order = np.lexsort((step, row, quadrant))
    quadrant, row, step = quadrant[order], row[order], step[order]
    # Of the epochs that trained on a row, the last.
    last = np.append((np.diff(quadrant) != 0) | (np.diff(row) != 0), True)
    return Sample(quadrant[last], row[last], step[last])


def score_rows(
    scorer: Scorer, rows: np.ndarray, special_tokens: SpecialTokens, document_attention: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Scores training rows, counting the targets that training counts.

    Returns:
        Counted targets of each row, int64 [n], and the sum of their NLL in nats, float64 [n].
    """
    devices = len(jax.local_devices())
    length = rows.shape[1] - 1
    at_once = max(1, scorer.rows * scorer.context // (length * devices)) * devices
    tokens, nll = [], []
    for first in range(0, len(rows), at_once):
        chunk = rows[first : first + at_once]
        padded = np.full((at_once, length + 1), special_tokens.bos_id, np.int32)
        padded[: len(chunk)] = chunk
        seen = make_lm_batch(jax.numpy.asarray(padded), special_tokens, document_attention)
        weights = np.asarray(seen.loss_mask)[: len(chunk)].astype(np.float64)
        values = np.asarray(scorer(seen))[0, : len(chunk)].astype(np.float64)
        tokens.append(weights.sum(1).astype(np.int64))
        nll.append((values * weights).sum(1))
    return np.concatenate(tokens), np.concatenate(nll)
