"""An arm's checkpoints in, one compiled scorer with the parameters of each in turn out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from frame_jax import checkpoints
from frame_jax.config.scoring import ScoringConfig
from frame_jax.models.functional import read_description
from frame_jax.scoring.step import Scorer, place


class CheckpointScorer(Scorer):
    """A scorer of one model whose parameters can be exchanged without compiling again."""

    def load(self, params: Any) -> None:
        """Puts other parameters of the same model in place of the present ones."""
        self._params = ()  # frees them before others come
        mesh = self._batch_sharding.mesh
        assert isinstance(mesh, Mesh)  # of devices, not of an abstract topology
        self._params = (place(self.models[0], params, mesh)[0],)


def checkpoint_scorers(
    scoring: ScoringConfig, folder: Path, steps: Sequence[int], *, average: bool
) -> Iterator[tuple[int, CheckpointScorer]]:
    """Each of `steps` with a scorer of that checkpoint, valid until the next is asked for.

    All processes must go through it together, those without work at a step too.

    Args:
        scoring: Rows, context and dtype.
        folder: A training run.
        steps: Checkpoints that are there.
        average: Take the moving average of the weights.
    """
    decoder = read_description(folder, compute_dtype=scoring.compute_dtype)
    scorer: CheckpointScorer | None = None
    for step in steps:
        params = checkpoints.load_params(folder / "checkpoints", decoder, step, average=average)
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
        yield step, scorer
