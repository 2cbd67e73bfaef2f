"""Writes the results of a trial as TensorBoard scalars, beside those of its training."""

from __future__ import annotations

import shutil
from pathlib import Path

from frame_jax.evaluation.results import TrialResult


def write_tensorboard(folder: Path, result: TrialResult) -> None:
    """Writes `folder`/tensorboard anew, where `folder` is that of the trial's scores."""
    from tensorboardX import SummaryWriter

    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for checkpoint in result.checkpoints:
            step, overall = checkpoint.step, checkpoint.overall
            writer.add_scalar("evaluate/nll_per_token", overall.nll_per_token, step)
            writer.add_scalar("evaluate/bits_per_byte", overall.bits_per_byte, step)
            for name, loss in checkpoint.slices.items():
                dimension, _, value = name.partition(": ")
                if dimension == "quadrant":
                    writer.add_scalar(f"evaluate.quadrant/{value}", loss.nll_per_token, step)
        for score in result.checkpoint_tasks():
            writer.add_scalar(f"evaluate.tasks/{score.task}", score.accuracy, score.step)
