"""Reads the checkpoints of a training run: their arrays, what is noted beside them, their steps.

A checkpoint of step s holds the state before step s runs: s updates have been applied. It carries
digests of its arrays, because the file format notices a file that is cut short but not a bit that
has changed. `training/checkpointer.py` writes them and continues from them.
"""

import contextlib
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from orbax.checkpoint import v1 as ocp

from frame_jax.errors import UserError, causes, find_storage_error, storage_error
from frame_jax.models.transformer import Decoder, Params
from frame_jax.run.bucket import bucket_of
from frame_jax.run.checkpoint_copies import local_checkpoint_folder
from frame_jax.run.directory import file_sha256

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax narrates every save at INFO and WARNING
# By default some of Orbax's barriers are collectives, which wait for ever; these wait five minutes.
flags.FLAGS.set_default("experimental_orbax_use_distributed_barrier", True)
flags.FLAGS.mark_as_parsed()


class DamagedError(Exception):
    """A checkpoint cannot be read, or does not hold what was saved."""


class UnreachableError(Exception):
    """Storage or network do not deliver a checkpoint at the moment; it may be whole."""


@dataclass(frozen=True)
class CheckpointMetadata:
    """What is noted beside the arrays of a checkpoint.

    Attributes:
        fingerprint: Identifies everything that the run's result depends on.
        digests: Of the arrays: `params` and `optimizer`.
        consumed_rows: What is known of the rows that led here.
    """

    fingerprint: str
    digests: dict[str, int]
    consumed_rows: dict[str, Any]


def read_metadata(orbax: ocp.training.Checkpointer, step: int) -> CheckpointMetadata:
    """Reads what is noted beside the arrays of a checkpoint.

    Raises:
        DamagedError: if it cannot be read.
        UnreachableError: if storage or network are at fault for that.
    """
    try:
        return CheckpointMetadata(**orbax.checkpointables_metadata(step).custom_metadata)
    except Exception as error:  # Orbax has no common class for what it cannot read
        lacks = ValueError("its metadata cannot be read")
        what = lacks if isinstance(error, TypeError) else error  # no mapping, or without a field
        raise explain_restore_failure(orbax, step, what) from error


def load_arrays(orbax: ocp.training.Checkpointer, step: int, like: dict[str, Any]) -> Any:
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
    orbax: ocp.training.Checkpointer, step: int, error: Exception
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
    try:
        for file in Path(orbax.directory, str(step)).rglob("*"):
            if file.is_file():
                file_sha256(file)  # which reads all of it
    except OSError as refused:
        if find_storage_error(refused):
            return UnreachableError(first_line(refused))
    return DamagedError(first_line(error))


def phase_step_of(folder: Path) -> str:
    """The phase step of a run's folder `checkpoints`, such as `pretrain-frame`."""
    return "-".join(folder.parts[-3:-1])


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for messages of our own."""
    return (str(error).strip('"').splitlines() or [type(error).__name__])[0][:300]


def saved_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints under `folder` or in its bucket, ascending."""
    with ocp.training.Checkpointer(glob_safe_path(folder)) as orbax:
        here = {checkpoint.step for checkpoint in orbax.checkpoints}
    bucket = bucket_of(folder.parent)
    return sorted(here | set(bucket.steps() if bucket else ()))


def require_saved(folder: Path, steps: Iterable[int]) -> None:
    """Refuses steps without a complete checkpoint under `folder` or in its bucket.

    Raises:
        UserError: naming the first of them, and the steps there are.
    """
    saved = saved_steps(folder)
    if lost := sorted(set(steps) - set(saved)):
        raise UserError(
            f"{folder} has no checkpoint of step {lost[0]}; there are: "
            f"{', '.join(map(str, saved)) or 'none'}. Choose one of these, or train the model "
            f"again with --redo {phase_step_of(folder)}"
        )


def saved_consumed_rows(folder: Path) -> dict[int, dict[str, Any]]:
    """Reads what each checkpoint in `folder` notes of the consumed rows, by step.

    Those that are in a bucket alone are not fetched, and those that cannot be read are left out.
    """
    found = {}
    with ocp.training.Checkpointer(glob_safe_path(folder)) as orbax:
        for step in sorted(checkpoint.step for checkpoint in orbax.checkpoints):
            with contextlib.suppress(DamagedError, UnreachableError):
                found[step] = read_metadata(orbax, step).consumed_rows
    return found


@contextlib.contextmanager
def _opened(folder: Path, step: int) -> Iterator[ocp.training.Checkpointer]:
    """Context in which a checkpoint is read; what keeps it from being read is a `UserError`."""
    path = folder / str(step)
    try:
        with (
            local_checkpoint_folder(folder, step) as local_folder,
            ocp.training.Checkpointer(glob_safe_path(local_folder)) as orbax,
        ):
            yield orbax
    except UnreachableError as error:
        raise storage_error(path, error) from error
    except DamagedError as error:
        raise UserError(
            f"{path} cannot be read ({error}); train the model again with --redo "
            f"{phase_step_of(folder)}"
        ) from error


def saved_digests(folder: Path, step: int) -> dict[str, int]:
    """Reads the digests that a checkpoint carries of its arrays.

    Raises:
        UserError: if it cannot be read.
    """
    with _opened(folder, step) as orbax:
        return read_metadata(orbax, step).digests


def load_params(
    folder: Path,
    decoder: Decoder,
    step: int | None = None,
    *,
    shardings: Any = None,
) -> Params:
    """Loads the parameters of a checkpoint on every process that calls this.

    All processes must call it together.

    Args:
        folder: The `checkpoints` folder of a training run.
        decoder: The model, which says what must be there.
        step: Which checkpoint; None takes the newest.
        shardings: Where on the devices each goes; None gives whole NumPy arrays.

    Returns:
        Nested dict of float32 arrays.

    Raises:
        UserError: if the checkpoint cannot be read, is out of reach, or is not this model's.
    """
    if shardings is None:
        like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), decoder.shapes())
    else:
        like = jax.tree.map(
            lambda leaf, target: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=target),
            *(decoder.shapes(), shardings),
        )
    step = max(saved_steps(folder), default=0) if step is None else step
    with _opened(folder, step) as orbax:
        digests = read_metadata(orbax, step).digests
        params = load_arrays(orbax, step, {"params": like})["params"]
        if shardings is None:
            found = array_digest(params, np)
        else:
            found = tree_digests({"params": params})["params"]
        if int(found) != digests["params"]:
            raise DamagedError("its params are not what was saved")
    return params


def load_mean(
    folder: Path,
    decoder: Decoder,
    steps: Iterable[int],
    *,
    shardings: Any = None,
) -> Params:
    """Loads the mean of the parameters at `steps`, oldest first, or those at a single one.

    All else is as in `load_params`.
    """
    each = (load_params(folder, decoder, s, shardings=shardings) for s in steps)
    params: Params = mean_of_checkpoints(each)
    return params


def array_digest(tree: Any, xp: ModuleType) -> Any:
    """Computes a number that changes with any bit of any array of a tree, however it is sharded.

    They are arrays of `xp`, `numpy` or `jax.numpy`, of numbers of 16 or 32 bits.

    Returns:
        uint32 scalar: the sum of all elements' bits, each times an odd number of its own, and of
        the arrays' sizes.
    """
    total = xp.zeros(1, xp.uint32)  # an array, because NumPy warns when a scalar wraps
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        bits = leaf.view(f"uint{8 * leaf.dtype.itemsize}").astype(xp.uint32)
        factor = xp.full((1,) * leaf.ndim, 2 * number + 1, xp.uint32)
        for axis, size in enumerate(leaf.shape):
            shape = [size if i == axis else 1 for i in range(leaf.ndim)]
            indices = xp.arange(size, dtype=xp.uint32).reshape(shape)
            factor = factor * xp.uint32(0x9E3779B1) + 2 * indices
        size = xp.uint32(leaf.size * (2 * number + 1) % 2**32)  # so that zeros differ from nothing
        total = total + xp.sum(bits * factor, dtype=xp.uint32) + size
    return total[0]


@jax.jit
def tree_digests(trees: dict[str, Any]) -> dict[str, jax.Array]:
    """`array_digest` of each tree of arrays on devices, by name."""
    return {name: array_digest(tree, jnp) for name, tree in trees.items()}


def mean_of_checkpoints(checkpoints: Iterable[Any]) -> Any:
    """Averages trees of float32 arrays of the same shape, of NumPy or on devices.

    They are read one after the other: one is held beside the running mean at a time.
    """
    mean = None
    for count, params in enumerate(checkpoints, 1):
        share = np.float32(1 / count)
        if mean is None:
            mean = params
        else:
            mean = jax.tree.map(lambda kept, leaf: kept + (leaf - kept) * share, mean, params)  # noqa: B023
    return mean


def glob_safe_path(folder: Path) -> Path:
    """`folder` itself, resolved, or a link to it where its path has one of `*?[]{}\\`.

    Orbax looks for its own files by patterns that begin with the whole path: under `runs/a[1]` it
    finds nothing, and under `runs/a*` its neighbours' files too. The link lies in the folder for
    temporary files, under the same name on every process.

    Raises:
        UserError: if that name is taken by something else.
    """
    folder = folder.resolve()
    if re.search(r"[*?\[\]{}\\]", str(folder)) is None:
        return folder
    folder.mkdir(parents=True, exist_ok=True)  # as Orbax would, which makes no folder of a link
    digest = hashlib.blake2b(os.fsencode(folder), digest_size=12).hexdigest()
    link = Path(tempfile.gettempdir()).resolve() / f"frame_jax-{os.getuid()}-{digest}"
    with contextlib.suppress(FileExistsError):
        link.symlink_to(folder)
    if not link.is_symlink() or link.readlink() != folder:
        raise UserError(
            f"{link} is taken, and stands for {folder}, whose name some libraries take for a "
            "pattern: remove it, or choose a --run_directory without any of * ? [ ] { } \\"
        )
    return link
