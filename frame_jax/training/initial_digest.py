"""The digest of the weights that the target starts from, which is part of its fingerprint.

Process 0 reads the weights for it once, and RUN/initial.json keeps it with the versions of their
files. Imports nothing heavy: a finished run must not wait for JAX.
"""

import hashlib

from frame_jax.config.run import RunConfig
from frame_jax.config.settings import flatten_settings
from frame_jax.config.training import InitialConfig
from frame_jax.errors import UserError
from frame_jax.files import find_remote_files, is_checkpoint, is_remote, local_copy
from frame_jax.run.directory import RunDirectory, file_sha256, read_json, write_json
from frame_jax.run.markers import INITIAL_WEIGHTS, read_marker
from frame_jax.run.program_exit import run_on_first_process

FILE = "initial.json"
UNKNOWN = ""  # where the weights must be read
WEIGHTS = (".safetensors", "config.json")


def recorded_digest(config: RunConfig, directory: RunDirectory) -> str | None:
    """The digest that the run has recorded; UNKNOWN without one, or where files have changed since.

    None for a run that starts from random weights. Weights that are out of reach count as those
    that were recorded: where training has begun they are needed no more.
    """
    initial, path = config.pretrain.initial, directory.root / FILE
    if initial is None:
        return None
    record = read_json(path) if path.exists() else {}
    if record.get("settings") != flatten_settings(initial):
        return UNKNOWN
    try:
        found = file_versions(initial)
    except (UserError, OSError):
        found = {}
    return str(record["digest"]) if found in ({}, record["files"]) else UNKNOWN


def file_versions(initial: InitialConfig) -> dict[str, str]:
    """What tells cheaply that the files of the weights are the same, by their names."""
    if initial.checkpoint is None:
        markers = RunDirectory(str(initial.run)).root.glob(f"pretrain-{initial.trial or '*'}.json")
        files = list(markers)  # written last
    elif is_remote(initial.checkpoint):
        remote = find_remote_files(initial.checkpoint)
        return {f.name: f"{f.size} {f.version}" for f in remote if f.name.endswith(WEIGHTS)}
    else:
        files = [f for f in local_copy(initial.checkpoint).glob("*") if f.name.endswith(WEIGHTS)]
    return {f.name: f"{f.stat().st_size} {f.stat().st_mtime_ns}" for f in sorted(files)}


def weights_digest(initial: InitialConfig) -> str:
    """Reads the weights' files, or what the checkpoints of a run say of their arrays.

    Raises:
        UserError: if there are none.
    """
    if initial.checkpoint is None:
        from frame_jax.training.initial import trial_digest

        text = trial_digest(initial)
    else:
        folder = local_copy(initial.checkpoint, is_checkpoint)
        files = sorted(f for f in folder.glob("*") if f.name.endswith(WEIGHTS))
        text = " ".join(f"{f.name} {file_sha256(f)}" for f in files)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def agreed_digest(config: RunConfig, recorded: str | None) -> str | None:
    """The digest of the weights on every process: as recorded on process 0, or made there.

    Raises:
        UserError: if the weights cannot be read.
    """
    initial = config.pretrain.initial
    if initial is None:
        return None
    return run_on_first_process(lambda: recorded or weights_digest(initial))


def write_record(config: RunConfig, directory: RunDirectory, phase_step: str) -> None:
    """Records the digest that a phase step has begun under; called on every process.

    Raises:
        UserError: if the weights are others by now.
    """
    from frame_jax.parallel import processes

    initial, marker = config.pretrain.initial, read_marker(directory, phase_step)
    if initial is None or marker is None or not processes.is_first():
        return
    files = file_versions(initial)
    digest = recorded_digest(config, directory) or weights_digest(initial)
    if digest != marker.inputs[INITIAL_WEIGHTS]:
        raise UserError(
            "pretrain.initial: the weights have changed since this program was started: put back "
            "what was there, or run the same command again"
        )
    record = {"settings": flatten_settings(initial), "files": files, "digest": digest}
    write_json(directory.root / FILE, record)
