"""A trial's checkpoints in, one compiled scorer with the weights of each in turn out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from frame_jax import checkpoints
from frame_jax.config.evaluation import AverageConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.models.functional import Decoder, read_description
from frame_jax.models.transformer import Params
from frame_jax.run.trial_record import averaged_steps
from frame_jax.scoring.scorer import Scorer, shard_params


class CheckpointScorer(Scorer):
    """A scorer of one model whose parameters can be exchanged without compiling again."""

    def load_params(self, params: Any) -> None:
        """Puts other parameters of the same model in place of the present ones."""
        self._params = ()  # frees them before others come
        mesh = self._batch_sharding.mesh
        assert isinstance(mesh, Mesh)  # of devices, not of an abstract topology
        self._params = (shard_params(self.models[0], params, mesh)[0],)


class Weights(NamedTuple):
    """Weights of a trial that are measured: a checkpoint's, or the mean of several.

    Attributes:
        name: Of the folder of their results.
        steps: Checkpoints they are made of, ascending; the last says where in training they stand.
        decay: Of the mean, see `models.averages.mean_of_checkpoints`.
    """

    name: str
    steps: tuple[int, ...]
    decay: float | None = None

    @property
    def step(self) -> int:
        """The newest checkpoint they are made of."""
        return self.steps[-1]

    @classmethod
    def of_step(cls, step: int) -> Weights:
        """A checkpoint's own."""
        return cls(str(step), (step,))

    @classmethod
    def mean(cls, trial_record: dict[str, Any], ema: AverageConfig) -> Weights:
        """The mean that a config asks for, of the trial with this curriculum.json."""
        steps = averaged_steps(trial_record, ema.last)
        return cls(f"average-{ema.name}", tuple(steps), ema.decay)


def checkpoint_scorers(
    scoring: ScoringConfig, folder: Path, weights: Sequence[Weights], *, ema: bool
) -> Iterator[tuple[Weights, CheckpointScorer]]:
    """Each of `weights` with a scorer of them, valid until the next is asked for.

    All processes must go through it together, those without work at one of them too.

    Args:
        scoring: Rows, context and dtype.
        folder: A training run.
        weights: Of checkpoints that are there.
        ema: Take the moving average of the weights where they are those of one checkpoint.
    """
    decoder = read_description(folder, compute_dtype=scoring.compute_dtype)
    scorer: CheckpointScorer | None = None
    for each in weights:
        params = load_weights(folder / "checkpoints", decoder, each, ema=ema)
        if scorer is None:
            scorer = CheckpointScorer(
                [(decoder, params)],
                scoring.context,
                per_device_batch_size=scoring.per_device_batch_size,
                loss_chunk=scoring.loss_chunk,
                fsdp=scoring.fsdp,
            )
        else:
            scorer.load_params(params)
        yield each, scorer


def load_weights(folder: Path, decoder: Decoder, weights: Weights, *, ema: bool) -> Params:
    """The parameters that `weights` stand for."""
    if len(weights.steps) == 1:
        return checkpoints.load_params(folder, decoder, weights.step, ema=ema)
    return checkpoints.load_mean_params(folder, decoder, weights.steps, weights.decay)
