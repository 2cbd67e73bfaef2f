"""A trained trial in, its final loss on rows that it was trained on out, by when that was.

Reads RUN/pretrain/<trial>/ and RUN/quadrants. Writes RUN/evaluation/<trial>/<step>/training_rows/
N/part-*.parquet, N the rows asked for: a line a row, with quadrant, row (its place among the
quadrant's), step (the last that trained on it), predicted_tokens and nll (sum, nats). Every trial
of a seed is measured on the same rows, so that what makes a row hard cancels between two trials,
and what is left is when each was trained on it (the question of arXiv 2509.25380). [ours]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.config.run import RunConfig
from frame_jax.curriculum.loader import QuadrantRows
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.evaluation.checkpoint_scorer import CheckpointScorer, Weights, checkpoint_scorers
from frame_jax.parallel import processes
from frame_jax.records import OpenFiles
from frame_jax.run import progress
from frame_jax.run.directory import RunDirectory, atomic_path, part_name, read_json
from frame_jax.scoring.packing import Batch
from frame_jax.training.phases import trial_order
from frame_jax.training.train_step import SpecialTokens, make_lm_batch

ROWS_PER_PART = 256
SELECTED_AT_ONCE = 1 << 18
BINS = 20  # of a run, in the summary


class Sample(NamedTuple):
    """Rows that a trial was trained on: int64 [n], sorted by quadrant and row.

    Attributes:
        quadrant: Index of the quadrant.
        row: Place among the quadrant's rows.
        step: The last step that trained on it.
    """

    quadrant: np.ndarray
    row: np.ndarray
    step: np.ndarray


def measure_training_rows(
    config: RunConfig, directory: RunDirectory, name: str
) -> dict[str, Any] | None:
    """Measures the final weights of a trial; called on every process.

    Returns:
        What RUN/evaluation/<trial>.json holds under `training_rows`: `rows`, `folder` (of the
        parts, relative to the run directory), and `loss_bins`, equal spans of the run that trained
        on a row of the sample, with first_step, rows and nll_per_token. None where none are asked
        for.
    """
    asked = config.evaluation.training_rows
    if asked == 0:
        return None
    selection, parts = trial_order(config, directory, config.trial(name))
    trial_record = read_json(directory.pretrain(name) / "curriculum.json")
    sample = choose_rows(selection, asked, trial_record["batch_size"])
    folder = directory.evaluation(name).with_suffix("") / str(trial_record["steps"])
    folder = folder / "training_rows" / str(asked)
    starts = range(0, len(sample.row), ROWS_PER_PART)
    paths = [folder / part_name(i, len(starts), ".parquet") for i in range(len(starts))]
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    processes.barrier(f"training rows {name}: parts listed")
    if missing:
        files = OpenFiles()
        quadrants = [
            QuadrantRows(quadrant, parts[quadrant], files)
            for quadrant in selection.schedule.quadrants
        ]
        token_ids = read_json(directory.tokenizer.with_name("special_tokens.json"))
        special_tokens = SpecialTokens(token_ids["bos_id"], token_ids["eos_id"])
        show = processes.is_first()
        with progress.progress_bar(
            f"training rows {name}", len(missing), "parts", show=show
        ) as update:
            wanted, ema = [Weights.of_step(trial_record["steps"])], config.evaluation.ema
            for _, scorer in checkpoint_scorers(
                config.scoring, directory.pretrain(name), wanted, ema=ema
            ):
                for number in processes.local_share(missing):
                    part = Sample(*(a[starts[number] :][:ROWS_PER_PART] for a in sample))
                    rows = read_rows(quadrants, part, trial_record["sequence_length"] + 1)
                    document_attention = config.pretrain.training.document_attention
                    tokens, nll = score_rows(scorer, rows, special_tokens, document_attention)
                    write_losses(paths[number], selection.schedule.quadrants, part, tokens, nll)
                    update(1, "")
    processes.barrier(f"training rows {name}: parts written")
    root = str(folder.relative_to(directory.root))
    return {
        "rows": len(sample.row),
        "folder": root,
        "bins": loss_bins(paths, trial_record["steps"]),
    }


def choose_rows(selection: SelectionMap, count: int, batch_size: int) -> Sample:
    """About `count` of the rows in use: every k-th of each quadrant, whatever the order is."""
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


def read_rows(quadrants: list[QuadrantRows], sample: Sample, row_tokens: int) -> np.ndarray:
    """The tokens of the sample's rows: int32 [n, row_tokens]."""
    rows = np.zeros((len(sample.row), row_tokens), np.int32)
    for number in np.unique(sample.quadrant):
        lines = np.flatnonzero(sample.quadrant == number)
        quadrants[number].read_into(rows, lines, sample.row[lines])
    return rows


def score_rows(
    scorer: CheckpointScorer,
    rows: np.ndarray,
    special_tokens: SpecialTokens,
    document_attention: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Counted targets of each row and the sum of their NLL in nats, as training counts.

    Returns:
        int64 [n] and float64 [n].
    """
    devices = len(jax.local_devices())
    length = rows.shape[1] - 1
    at_once = max(1, scorer.rows * scorer.context // (length * devices)) * devices
    tokens, nll = [], []
    for first in range(0, len(rows), at_once):
        chunk = rows[first : first + at_once]
        padded = np.full((at_once, length + 1), special_tokens.bos, np.int32)
        padded[: len(chunk)] = chunk
        seen = make_lm_batch(jax.numpy.asarray(padded), special_tokens, document_attention)
        batch = Batch(
            np.asarray(seen.inputs),
            np.asarray(seen.targets),
            np.asarray(seen.segment_ids),
            np.asarray(seen.positions),
            windows=[],
            starts=np.zeros(0, np.int64),
        )
        weights = np.asarray(seen.loss_mask, np.float64)[: len(chunk)]
        values = np.asarray(scorer(batch))[0, : len(chunk)].astype(np.float64)
        tokens.append(weights.sum(1).astype(np.int64))
        nll.append((values * weights).sum(1))
    return np.concatenate(tokens), np.concatenate(nll)


def write_losses(
    path: Path, quadrants: tuple[str, ...], sample: Sample, tokens: np.ndarray, nll: np.ndarray
) -> None:
    """Writes one part."""
    columns = {
        "quadrant": [quadrants[number] for number in sample.quadrant],
        "row": sample.row,
        "step": sample.step,
        "predicted_tokens": tokens,
        "nll": nll,
    }
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


def loss_bins(paths: list[Path], steps: int) -> list[dict[str, Any]]:
    """Losses by when rows were trained on; see `measure_training_rows`."""
    if not processes.is_first():
        return []
    table = pa.concat_tables([pq.read_table(path) for path in paths])
    step, tokens, nll = (table[c].to_numpy() for c in ("step", "predicted_tokens", "nll"))
    number = step * BINS // steps
    return [
        {
            "first_step": int(-(-n * steps // BINS)),
            "rows": int((number == n).sum()),
            "nll_per_token": float(nll[number == n].sum() / tokens[number == n].sum()),
        }
        for n in range(BINS)
        if tokens[number == n].sum() > 0
    ]
