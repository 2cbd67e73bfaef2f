"""What RUN/evaluation/<trial>.json holds, as TensorBoard scalars beside the training's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any


def write_tensorboard(folder: Path, measured: dict[str, Any]) -> None:
    """Writes `folder`/tensorboard anew.

    Args:
        folder: The folder of the trial's held-out scores.
        measured: Contents of its JSON file.
    """
    from tensorboardX import SummaryWriter

    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for checkpoint in measured["checkpoints"]:
            for key in ("nll_per_token", "bits_per_byte"):
                writer.add_scalar(f"evaluate/{key}", checkpoint["overall"][key], checkpoint["step"])
            for quadrant, part in checkpoint["quadrant"].items():
                tag = f"evaluate.quadrant/{quadrant}"
                writer.add_scalar(tag, part["nll_per_token"], checkpoint["step"])
        for score in measured.get("tasks", []):
            writer.add_scalar(f"evaluate.tasks/{score['task']}", score["accuracy"], score["step"])
