"""Saves the state of a training run, and restores the newest checkpoint that can be read.

Beside the arrays stand the fingerprint of the run, because a checkpoint is not continued under
another, digests of the arrays, and what the trainer notes: the digest of the rows that it has read.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from frame_jax import checkpoints
from frame_jax.errors import UserError, print_warning, storage_error
from frame_jax.models.transformer import Params
from frame_jax.parallel import processes
from frame_jax.run.checkpoint_copies import CheckpointCopies
from frame_jax.run.directory import explain_full_disk, no_room_error

ROLLING = 2  # newest checkpoints that are kept beside the asked-for ones


class Checkpointer:
    """Saves and restores one training run's state under `folder`.

    Steps in `kept_steps` keep their checkpoints; `fingerprint` identifies all that the result of
    the run depends on.
    """

    def __init__(self, folder: Path, kept_steps: Sequence[int], fingerprint: str):
        self.folder, self.fingerprint = folder, fingerprint
        self._saving = folder / "0", 0  # path and bytes of the save under way
        self._response: Any = None  # which ends with it
        self._copies = CheckpointCopies(folder, kept_steps, ROLLING)
        policies = ocp.training.preservation_policies
        # Where copies go to a bucket, the kept steps are there and need no room here.
        kept = [] if self._copies.exist else [policies.CustomSteps(list(kept_steps))]
        self._orbax = ocp.training.Checkpointer(
            checkpoints.glob_safe_path(folder),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(ROLLING), *kept]),
            cleanup_tmp_directories=True,
        )

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        latest = self._orbax.latest
        return None if latest is None else latest.step

    def save(
        self, step: int, params: Params, optimizer_state: Any, consumed: dict[str, Any]
    ) -> None:
        """Starts saving in the background; waits only for a save still under way.

        `step` updates have been applied. `consumed` is what is known of the rows that led here, for
        JSON, the same on every process.

        Raises:
            UserError: if the disk is full, or the last copy could not be made.
        """
        size = sum(leaf.nbytes for leaf in jax.tree.leaves([params, optimizer_state]))
        path = self.folder / str(step)
        if shutil.disk_usage(self.folder.parent).free < size:
            raise no_room_error(path, size)
        state = {"params": params, "optimizer": optimizer_state}
        digests = state_digests(params, optimizer_state)
        metadata = checkpoints.CheckpointMetadata(self.fingerprint, digests, consumed)
        with explain_full_disk(*self._saving):
            if self._response is not None:
                self._response.result()
        self._copies.finish()
        with explain_full_disk(path, size):
            self._response = self._orbax.save_checkpointables_async(
                step, state, custom_metadata=dataclasses.asdict(metadata)
            )
        self._saving = path, size
        self._copies.begin(step)

    def restore(
        self, step: int, params: Params, optimizer_state: Any
    ) -> tuple[Params, Any, dict[str, Any]]:
        """Restores the state at `step`, and what `save` noted of the rows that led there.

        Both trees, of `jax.ShapeDtypeStruct` with shardings, say what to restore and where to.

        Raises:
            UserError: if the checkpoint belongs to a run with other settings.
            DamagedError: if it cannot be read.
            UnreachableError: if storage or network are at fault for that.
        """
        metadata = checkpoints.read_metadata(self._orbax, step)
        if metadata.fingerprint != self.fingerprint:
            raise UserError(
                f"{self.folder / str(step)} was written under other settings or rows; continue in "
                "a new run directory, or remove it with --redo of its phase"
            )
        restored = checkpoints.load_arrays(
            self._orbax, step, {"params": params, "optimizer": optimizer_state}
        )
        state = restored["params"], restored["optimizer"]
        if state_digests(*state) != metadata.digests:
            raise checkpoints.DamagedError("its arrays are not what was saved")
        return *state, metadata.consumed_rows

    def restore_newest(
        self, params: Params, optimizer_state: Any
    ) -> tuple[int, Params, Any, dict[str, Any]] | None:
        """Restores the newest checkpoint that all processes can read: its step and what `restore`
        gives of it, or None.

        Damaged ones are moved aside, with a warning, once one before them has been read: what
        spoils all of them is rather the storage or the memory than the files. One that is out of
        reach is waited for: nothing before it is taken in its place. Arguments as for `restore`.

        Raises:
            UserError: if there are checkpoints and none of them can be read, or one is out of
                reach.
        """
        damaged: dict[int, str] = {}
        here = {found.step for found in self._orbax.checkpoints}
        for step in sorted(here | set(self._copies.steps()), reverse=True):
            state, problem, reachable = None, "on another process", True
            if step not in here:
                lost = self._copies.fetch(step, self.folder / str(step))
                if lost is not None:
                    damaged[step] = lost
                    continue
                self._orbax.reload()
            try:
                state = self.restore(step, params, optimizer_state)
            except checkpoints.DamagedError as error:
                problem = str(error)
            except checkpoints.UnreachableError as error:
                problem, reachable = str(error), False
            for _, messages in processes.failing_processes(reachable, problem).items():
                raise storage_error(self.folder / str(step), messages)
            if processes.all_agree(state is not None) and state is not None:
                self._set_aside(damaged)
                return step, *state
            damaged[step] = problem
        if damaged:
            listing = "\n".join(f"  {step}: {problem}" for step, problem in damaged.items())
            raise UserError(
                f"none of the checkpoints in {self.folder} can be read:\n{listing}\nIf the storage "
                "or the memory is at fault, fix that and run the same command again; nothing was "
                "changed. If they are lost, train from the start: --redo "
                f"{checkpoints.phase_step_of(self.folder)}"
            )
        return None

    def _set_aside(self, damaged: dict[int, str]) -> None:
        """Moves damaged checkpoints to `damaged/` and warns about each."""
        for step, problem in damaged.items():
            aside = self.folder.with_name("damaged") / str(step)
            print_warning(
                f"{self.folder / str(step)} is damaged ({problem}); it goes to {aside}, and "
                "training continues from a checkpoint before it"
            )
            if processes.is_first():
                aside.parent.mkdir(exist_ok=True)
                shutil.rmtree(aside, ignore_errors=True)
                if (self.folder / str(step)).exists():
                    (self.folder / str(step)).rename(aside)
                self._copies.set_aside(step)
        if damaged:
            processes.barrier("damaged checkpoints moved")
            self._orbax.reload()

    def close(self) -> None:
        """Waits for the save in progress and its copy.

        Raises:
            UserError: if the disk is full, or the copy could not be made.
        """
        saved = False
        try:
            with explain_full_disk(*self._saving):
                self._orbax.close()
            saved = True
        finally:
            self._copies.close(give_up=not saved)


def state_digests(params: Params, optimizer_state: Any) -> dict[str, int]:
    """Digests of `params` and `optimizer`."""
    trees = {"params": params, "optimizer": optimizer_state}
    return jax.tree.map(int, checkpoints.tree_digests(trees))
