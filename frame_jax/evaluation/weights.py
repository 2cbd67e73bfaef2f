"""Weights of a trial that are measured, and the files of measurements that processes share."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax import checkpoints
from frame_jax.config.evaluation import AverageConfig
from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError
from frame_jax.models.transformer import read_description
from frame_jax.parallel import processes
from frame_jax.run import progress
from frame_jax.run.directory import RunDirectory, atomic_path
from frame_jax.run.trial_record import TrialRecord, averaged_steps
from frame_jax.scoring.scorer import Scorer


class Weights(NamedTuple):
    """Weights of a trial that are measured: a checkpoint's, or the mean of several checkpoints'.

    Attributes:
        name: Of the folder of their results.
        steps: Checkpoints they are made of, ascending; the last says where in training they stand.
    """

    name: str
    steps: tuple[int, ...]

    @property
    def step(self) -> int:
        """The newest checkpoint they are made of."""
        return self.steps[-1]

    @classmethod
    def of_step(cls, step: int) -> Self:
        """The weights of one checkpoint."""
        return cls(str(step), (step,))

    @classmethod
    def mean(cls, record: TrialRecord, average: AverageConfig) -> Self:
        """The mean of a trial's last checkpoints that a config asks for.

        Raises:
            UserError: if fewer checkpoints were kept.
        """
        steps = averaged_steps(record, average.last)
        return cls(f"average-{average.name}", tuple(steps))


class Part(NamedTuple):
    """A Parquet file of measurements that one process makes in one go.

    Attributes:
        work: What the weights are measured on.
        size: How much that is, in the unit of the progress bar.
        note: Shown beside the progress bar.
    """

    weights: Weights
    path: Path
    work: Any
    size: int
    note: str


# Columns of a part, `nll` among them; the last argument advances the progress bar.
Measure = Callable[[Scorer, Part, Callable[[int], None]], dict[str, Any]]


def write_missing_parts(
    config: RunConfig,
    directory: RunDirectory,
    trial: str,
    parts: Sequence[Part],
    measure: Measure,
    *,
    title: str,
    unit: str,
) -> None:
    """Writes the parts that are not there yet, with the columns that `measure` makes of each.

    Called on every process, with the same parts. `title` is that of the progress bar and of the
    barriers, `unit` of the parts' sizes.

    Raises:
        UserError: if a loss is not finite.
    """
    missing = [part for part in parts if not part.path.exists()]
    # Every process sees the same missing parts, because none writes before all have looked.
    processes.barrier(f"{title}: parts listed")
    if missing:
        share, folder = processes.local_share(missing), directory.pretrain(trial)
        saved = folder / "checkpoints"
        total, show = sum(part.size for part in share), processes.is_first()
        decoder = read_description(folder, compute_dtype=config.scoring.compute_dtype)
        scorer: Scorer | None = None
        with progress.progress_bar(title, total, unit, show=show) as update:
            # All processes load weights together, those without a share of them too.
            for weights in dict.fromkeys(part.weights for part in missing):
                params = checkpoints.load_mean(saved, decoder, weights.steps)
                if scorer is None:
                    scorer = Scorer([(decoder, params)], config.scoring)
                else:
                    scorer.replace_params(params)  # which compiles nothing again
                for part in (part for part in share if part.weights == weights):
                    columns = measure(scorer, part, functools.partial(update, note=part.note))
                    if not np.isfinite(np.hstack(columns["nll"])).all():
                        raise UserError(
                            f"{part.path.parent}: a loss under these weights is not a number, so "
                            "their training has diverged: lower "
                            "pretrain.training.lr_schedule.peak and train again"
                        )
                    with atomic_path(part.path) as temporary:
                        pq.write_table(pa.table(columns), temporary, compression="zstd")
    processes.barrier(f"{title}: parts written")
