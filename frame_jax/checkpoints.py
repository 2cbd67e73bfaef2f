"""Training state to disk and back. The only module that calls Orbax.

A checkpoint of step s holds the state before step s runs: s updates have been applied. It carries
the fingerprint of the run that wrote it and is not continued under another.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from frame_jax.errors import UserError
from frame_jax.models.functional import Decoder
from frame_jax.models.transformer import Params

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every save at INFO and WARNING

ROLLING = 2  # newest checkpoints that are kept beside the asked-for ones


class Checkpointer:
    """Saves and restores one training run's state under `folder`.

    Args:
        folder: Where checkpoints go, one sub-folder a step.
        kept_steps: Steps whose checkpoints are never deleted.
        fingerprint: Identifies everything the run's result depends on.
    """

    def __init__(self, folder: Path, kept_steps: Sequence[int], fingerprint: str):
        self.folder, self.fingerprint = folder, fingerprint
        policies = ocp.training.preservation_policies
        self._orbax = ocp.training.Checkpointer(
            folder.resolve(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(ROLLING), policies.CustomSteps(list(kept_steps))]
            ),
            cleanup_tmp_directories=True,
        )

    def latest(self) -> int | None:
        """The newest complete checkpoint's step."""
        latest = self._orbax.latest
        return None if latest is None else latest.step

    def save(self, step: int, params: Params, optimizer_state: Any) -> None:
        """Starts saving in the background; waits only for a save still under way."""
        self._orbax.save_checkpointables_async(
            step,
            {"params": params, "optimizer": optimizer_state},
            custom_metadata={"fingerprint": self.fingerprint},
        )

    def restore(self, step: int, params: Params, optimizer_state: Any) -> tuple[Params, Any]:
        """The state at `step`.

        Args:
            step: Step of the checkpoint.
            params: Tree of `jax.ShapeDtypeStruct` with shardings: what to restore and where to.
            optimizer_state: The same for the optimizer.

        Raises:
            UserError: if the checkpoint belongs to a run with other settings.
        """
        metadata = self._orbax.checkpointables_metadata(step).custom_metadata or {}
        if metadata.get("fingerprint") != self.fingerprint:
            raise UserError(
                f"{self.folder / str(step)} was written under other settings or rows; continue in "
                "a new run directory, or remove it with --redo of its phase"
            )
        restored = self._orbax.load_checkpointables(
            step, {"params": params, "optimizer": optimizer_state}
        )
        return restored["params"], restored["optimizer"]

    def close(self) -> None:
        """Waits for the save under way."""
        self._orbax.close()


def saved_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints under `folder`, ascending."""
    with ocp.training.Checkpointer(folder.resolve()) as orbax:
        return sorted(checkpoint.step for checkpoint in orbax.checkpoints)


def load_params(folder: Path, decoder: Decoder, step: int | None = None) -> Params:
    """Parameters of a checkpoint as NumPy arrays, on every process that calls this.

    All processes must call it together.

    Args:
        folder: The `checkpoints` folder of a training run.
        decoder: The model, which says what must be there.
        step: Which checkpoint; None takes the newest.

    Returns:
        Nested dict of float32 NumPy arrays.
    """
    like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), decoder.shapes())
    with ocp.training.Checkpointer(folder.resolve()) as orbax:
        return orbax.load_checkpointables(step, {"params": like})["params"]
