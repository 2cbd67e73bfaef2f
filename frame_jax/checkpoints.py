"""Saves and restores training state. The only module that calls Orbax.

A checkpoint of step s holds the state before step s runs: s updates have been applied. It carries
the fingerprint of the run that wrote it and is not continued under another, digests of its arrays,
because the file format notices a file that is cut short but not a bit that has changed, and what
the trainer notes beside them: the digest of the rows that it has read.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from orbax.checkpoint import v1 as ocp

from frame_jax.errors import UserError, causes, is_disk_full
from frame_jax.models.averages import EmaState, mean_of_checkpoints
from frame_jax.models.functional import Decoder
from frame_jax.models.transformer import Params
from frame_jax.parallel import array_digest, processes
from frame_jax.run.checkpoint_copies import CheckpointCopies, copied_steps, local_checkpoint_folder
from frame_jax.run.directory import no_room_error
from frame_jax.run.glob_safe_path import glob_safe_path
from frame_jax.run.storage_errors import find_storage_error, is_storage_error, storage_error

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every save at INFO and WARNING
# By default some of Orbax's barriers are collectives, which wait for ever; these wait five minutes.
flags.FLAGS.set_default("experimental_orbax_use_distributed_barrier", True)
flags.FLAGS.mark_as_parsed()

logger = logging.getLogger(__name__)

READ_BYTES = 1 << 24
ROLLING = 2  # newest checkpoints that are kept beside the asked-for ones


class DamagedError(Exception):
    """A checkpoint cannot be read, or does not hold what was saved."""


class UnreachableError(Exception):
    """Storage or network do not deliver a checkpoint at the moment; it may be whole."""


class Checkpointer:
    """Saves and restores one training run's state under `folder`.

    Args:
        folder: Where checkpoints go, one sub-folder a step.
        kept_steps: Steps whose checkpoints are never deleted.
        fingerprint: Identifies everything the run's result depends on.
    """

    def __init__(self, folder: Path, kept_steps: Sequence[int], fingerprint: str):
        self.folder, self.fingerprint = folder, fingerprint
        self._saving = 0, 0  # step and bytes of the save under way
        self._response: Any = None  # which ends with it
        self._copies = CheckpointCopies(folder, kept_steps, ROLLING)
        policies = ocp.training.preservation_policies
        # Where copies go to a bucket, the kept steps are there and need no room here.
        kept = [] if self._copies.exist else [policies.CustomSteps(list(kept_steps))]
        self._orbax = ocp.training.Checkpointer(
            glob_safe_path(folder),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(ROLLING), *kept]),
            cleanup_tmp_directories=True,
        )

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint."""
        latest = self._orbax.latest
        return None if latest is None else latest.step

    def save(
        self,
        step: int,
        params: Params,
        optimizer_state: Any,
        consumed: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts saving in the background; waits only for a save still under way.

        Args:
            step: Updates that have been applied.
            params: The parameters.
            optimizer_state: The optimizer's state.
            consumed: What is known of the rows that led here, for JSON, the same on every process.

        Raises:
            UserError: if the disk is full, or the last copy could not be made.
        """
        size = sum(leaf.nbytes for leaf in jax.tree.leaves([params, optimizer_state]))
        if shutil.disk_usage(self.folder.parent).free < size:
            raise no_room_error(self.folder / str(step), size)
        state = {"params": params, "optimizer": optimizer_state}
        digests = state_digests(params, optimizer_state)
        metadata = {
            "fingerprint": self.fingerprint,
            "digests": digests,
            "consumed_rows": dict(consumed or {}),
        }
        with self._report_full_disk(*self._saving):
            if self._response is not None:
                self._response.result()
        self._copies.finish()
        with self._report_full_disk(step, size):
            self._response = self._orbax.save_checkpointables_async(
                step, state, custom_metadata=metadata
            )
        self._saving = step, size
        self._copies.begin(step)

    def restore(self, step: int, params: Params, optimizer_state: Any) -> tuple[Params, Any]:
        """Restores the state at `step`.

        Args:
            step: Step of the checkpoint.
            params: Tree of `jax.ShapeDtypeStruct` with shardings: what to restore and where to.
            optimizer_state: The same for the optimizer.

        Raises:
            UserError: if the checkpoint belongs to a run with other settings.
            DamagedError: if it cannot be read.
            UnreachableError: if storage or network are at fault for that.
        """
        metadata = read_metadata(self._orbax, step)
        if metadata["fingerprint"] != self.fingerprint:
            raise UserError(
                f"{self.folder / str(step)} was written under other settings or rows; continue in "
                "a new run directory, or remove it with --redo of its phase"
            )
        restored = load_arrays(self._orbax, step, {"params": params, "optimizer": optimizer_state})
        state = restored["params"], restored["optimizer"]
        if state_digests(*state) != metadata["digests"]:
            raise DamagedError("its arrays are not what was saved")
        return state

    def consumed_rows(self, step: int) -> dict[str, Any]:
        """What `save` noted of the rows that led to a checkpoint.

        Raises:
            DamagedError: if it cannot be read.
        """
        return read_metadata(self._orbax, step)["consumed_rows"]

    def restore_newest(
        self, params: Params, optimizer_state: Any
    ) -> tuple[int, Params, Any] | None:
        """Restores the newest checkpoint that all processes can read: step and state; None without
        one.

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
            except DamagedError as error:
                problem = str(error)
            except UnreachableError as error:
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
                f"{phase_step_of(self.folder)}"
            )
        return None

    def _set_aside(self, damaged: dict[int, str]) -> None:
        """Moves damaged checkpoints to `damaged/` and warns about each."""
        for step, problem in damaged.items():
            aside = self.folder.with_name("damaged") / str(step)
            logger.warning(
                "%s is damaged (%s); it goes to %s, and training continues from a checkpoint "
                "before it",
                *(self.folder / str(step), problem, aside),
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

    @contextlib.contextmanager
    def _report_full_disk(self, step: int, size: int) -> Iterator[None]:
        """Context that names the checkpoint that did not fit when the disk is full."""
        try:
            yield
        except Exception as error:
            if is_disk_full(error):
                raise no_room_error(self.folder / str(step), size) from error
            raise

    def close(self) -> None:
        """Waits for the save in progress and its copy.

        Raises:
            UserError: if the disk is full, or the copy could not be made.
        """
        saved = False
        try:
            with self._report_full_disk(*self._saving):
                self._orbax.close()
            saved = True
        finally:
            self._copies.close(give_up=not saved)


def read_metadata(orbax: ocp.training.Checkpointer, step: int | None) -> dict[str, Any]:
    """What `save` noted beside the arrays: `fingerprint`, `digests` as `state_digests` gives,
    `consumed_rows`.
    """
    try:
        metadata = orbax.checkpointables_metadata(step).custom_metadata
    except Exception as error:  # Orbax has no common class for what it cannot read
        raise explain_restore_failure(orbax, step, error) from error
    if (
        not isinstance(metadata, dict)
        or not {"fingerprint", "digests", "consumed_rows"} <= metadata.keys()
    ):
        raise explain_restore_failure(orbax, step, ValueError("its metadata cannot be read"))
    return metadata


def load_arrays(orbax: ocp.training.Checkpointer, step: int | None, like: dict[str, Any]) -> Any:
    """Loads the arrays of a checkpoint in the shapes of `like`."""
    try:
        found = orbax.load_checkpointables(step, like)
    except Exception as error:  # Orbax has no common class for what it cannot read
        raise explain_restore_failure(orbax, step, error) from error
    shapes = [
        [leaf.shape for leaf in jax.tree.leaves(tree) if leaf is not ...] for tree in (like, found)
    ]
    for expected, shape in zip(*shapes, strict=True):
        if expected != shape:
            raise DamagedError(f"an array has shape {shape}, where the model has {expected}")
    return found


def explain_restore_failure(
    orbax: ocp.training.Checkpointer, step: int | None, error: Exception
) -> Exception:
    """Decides what Orbax's failure to read a checkpoint means: damage, or storage out of reach.

    Orbax hides the error of the file system, so every file is read once more: one that cannot be
    read at all says that the storage is at fault, and no longer that the checkpoint is damaged.

    Raises:
        KeyboardInterrupt: if that is what Orbax took for an error of its own.
    """
    for cause in causes(error):
        if not isinstance(cause, Exception):
            raise cause
    if (found := find_storage_error(error)) is not None:
        return UnreachableError(first_line(found))
    folder = Path(orbax.directory, "" if step is None else str(step))
    try:
        for file in folder.rglob("*"):
            if file.is_file():
                with file.open("rb") as content:
                    while content.read(READ_BYTES):
                        pass
    except OSError as refused:
        if is_storage_error(refused):
            return UnreachableError(first_line(refused))
    return DamagedError(first_line(error))


def phase_step_of(folder: Path) -> str:
    """The phase step of a run's folder `checkpoints`, such as `pretrain-frame`."""
    return "-".join(folder.parts[-3:-1])


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for messages of our own."""
    return (str(error).strip('"').splitlines() or [type(error).__name__])[0][:300]


def state_digests(params: Params, optimizer_state: Any) -> dict[str, int]:
    """Digests of `params`, `optimizer` and, where the optimizer keeps one, the weights' `average`.

    The average is part of the optimizer's state, and has its own because it is read alone.
    """
    trees = {"params": params, "optimizer": optimizer_state}
    last = optimizer_state[-1] if isinstance(optimizer_state, tuple) else None
    if isinstance(last, EmaState):
        trees["ema"] = last.ema
    return jax.tree.map(int, array_digest.tree_digests(trees))


def saved_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints under `folder` or in its bucket, ascending."""
    with ocp.training.Checkpointer(glob_safe_path(folder)) as orbax:
        here = {checkpoint.step for checkpoint in orbax.checkpoints}
    return sorted(here | set(copied_steps(folder)))


def saved_consumed_rows(folder: Path) -> dict[int, dict[str, Any]]:
    """Reads what each checkpoint in `folder` notes of the consumed rows, by step.

    Those that are in a bucket alone are not fetched, and those that cannot be read are left out.
    """
    found = {}
    with ocp.training.Checkpointer(glob_safe_path(folder)) as orbax:
        for step in sorted(checkpoint.step for checkpoint in orbax.checkpoints):
            with contextlib.suppress(DamagedError, UnreachableError):
                found[step] = read_metadata(orbax, step)["consumed_rows"]
    return found


def load_params(
    folder: Path, decoder: Decoder, step: int | None = None, *, ema: bool = False
) -> Params:
    """Loads the parameters of a checkpoint as NumPy arrays on every process that calls this.

    All processes must call it together.

    Args:
        folder: The `checkpoints` folder of a training run.
        decoder: The model, which says what must be there.
        step: Which checkpoint; None takes the newest.
        ema: Load the moving average of the parameters that the optimizer keeps instead.

    Returns:
        Nested dict of float32 NumPy arrays.

    Raises:
        UserError: if the checkpoint cannot be read, is out of reach, is not this model's, or has
            no average.
    """
    like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), decoder.shapes())
    try:
        with (
            local_checkpoint_folder(folder, step) as local_folder,
            ocp.training.Checkpointer(glob_safe_path(local_folder)) as orbax,
        ):
            metadata = read_metadata(orbax, step)
            if ema:
                params = _load_ema(orbax, step, like)
            else:
                params = load_arrays(orbax, step, {"params": like})["params"]
        expected = metadata["digests"]["ema" if ema else "params"]
        if int(array_digest.array_digest(params, np)) != expected:
            raise DamagedError("its params are not what was saved")
    except UnreachableError as error:
        raise storage_error(folder / ("" if step is None else str(step)), error) from error
    except DamagedError as error:
        raise UserError(
            f"{folder / ('' if step is None else str(step))} cannot be read ({error}); train the "
            f"model again with --redo {phase_step_of(folder)}"
        ) from error
    return params


def load_mean_params(
    folder: Path, decoder: Decoder, steps: Sequence[int], decay: float | None = None
) -> Params:
    """Loads the mean of the parameters of several checkpoints, one after the other.

    All processes must call it together.

    Args:
        folder: The `checkpoints` folder of a training run.
        decoder: The model.
        steps: Which checkpoints, ascending.
        decay: See `mean_of_checkpoints`.

    Raises:
        UserError: if one of them cannot be read.
    """
    return mean_of_checkpoints((load_params(folder, decoder, step) for step in steps), decay)


def _load_ema(orbax: ocp.training.Checkpointer, step: int | None, like: Params) -> Params:
    """Loads the moving average alone, without the optimizer's other arrays.

    Raises:
        UserError: if the optimizer kept none.
    """
    saved = orbax.checkpointables_metadata(step).metadata["optimizer"]
    last = saved[-1] if isinstance(saved, list) else None
    if not (isinstance(last, dict) and "ema" in last):
        raise UserError(
            "this model was trained without a moving average of its weights; it needs "
            "training.optimizer.ema_decay, such as 0.999, from its first step on"
        )
    others = jax.tree.map(lambda _: ..., saved)  # what Orbax leaves out
    wanted = [*others[:-1], {"ema": like}]
    return load_arrays(orbax, step, {"optimizer": wanted})["optimizer"][-1]["ema"]
