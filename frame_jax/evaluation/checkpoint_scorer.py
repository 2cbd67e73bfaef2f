"""An arm's checkpoints in, one compiled scorer with the weights of each in turn out."""

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
from frame_jax.run.arm import averaged_steps
from frame_jax.scoring.step import Scorer, place


class CheckpointScorer(Scorer):
    """A scorer of one model whose parameters can be exchanged without compiling again."""

    def load(self, params: Any) -> None:
        """Puts other parameters of the same model in place of the present ones."""
        self._params = ()  # frees them before others come
        mesh = self._batch_sharding.mesh
        assert isinstance(mesh, Mesh)  # of devices, not of an abstract topology
        self._params = (place(self.models[0], params, mesh)[0],)


class Weights(NamedTuple):
    """Weights of an arm that are measured: a checkpoint's, or the mean of several.

    Attributes:
        name: Of the folder of their results.
        steps: Checkpoints they are made of, ascending; the last says where in training they stand.
        decay: Of the mean, see `models.averages.mean_of`.
    """

    name: str
    steps: tuple[int, ...]
    decay: float | None = None

    @property
    def step(self) -> int:
        """The newest checkpoint they are made of."""
        return self.steps[-1]

    @classmethod
    def of(cls, step: int) -> Weights:
        """A checkpoint's own."""
        return cls(str(step), (step,))

    @classmethod
    def mean(cls, plan: dict[str, Any], average: AverageConfig) -> Weights:
        """The mean that a config asks for, of the arm with this curriculum.json."""
        steps = averaged_steps(plan, average.last)
        return cls(f"average-{average.name}", tuple(steps), average.decay)


def checkpoint_scorers(
    scoring: ScoringConfig, folder: Path, weights: Sequence[Weights], *, average: bool
) -> Iterator[tuple[Weights, CheckpointScorer]]:
    """Each of `weights` with a scorer of them, valid until the next is asked for.

    All processes must go through it together, those without work at one of them too.

    Args:
        scoring: Rows, context and dtype.
        folder: A training run.
        weights: Of checkpoints that are there.
        average: Take the moving average of the weights where they are those of one checkpoint.
    """
    decoder = read_description(folder, compute_dtype=scoring.compute_dtype)
    scorer: CheckpointScorer | None = None
    for each in weights:
        params = load(folder / "checkpoints", decoder, each, average=average)
        if scorer is None:
            scorer = CheckpointScorer(
                [(decoder, params)],
                scoring.context,
                rows_per_device=scoring.rows_per_device,
                loss_chunk=scoring.loss_chunk,
                fsdp=scoring.fsdp,
            )
        else:
            scorer.load(params)
        yield each, scorer


def load(folder: Path, decoder: Decoder, weights: Weights, *, average: bool) -> Params:
    """The parameters that `weights` stand for."""
    if len(weights.steps) == 1:
        return checkpoints.load_params(folder, decoder, weights.step, average=average)
    return checkpoints.load_mean(folder, decoder, weights.steps, weights.decay)
