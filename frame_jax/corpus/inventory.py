"""Records the corpus' files when tokenize begins, and compares them with what is there later.

No phase after tokenize reads the corpus. It may be moved away then; but if it is there, it must be
what it was.
"""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from frame_jax.config.corpus import SourceConfig
from frame_jax.config.paths import user_path
from frame_jax.config.run import RunConfig
from frame_jax.config.settings import flatten_settings
from frame_jax.corpus.parts import corpus_signature, list_inputs, tokenizer_bytes
from frame_jax.corpus.sources.inputs import escape_name
from frame_jax.errors import UserError, print_note
from frame_jax.files import is_remote
from frame_jax.run.directory import RunDirectory, read_json, write_json
from frame_jax.run.markers import CORPUS_FILES, read_marker

SHOWN = 10


def require_apart(config: RunConfig) -> None:
    """Refuses a run that would write among the files of its corpus; folders of runs below that of
    a corpus are not read.

    Raises:
        UserError: naming the setting.
    """
    for index, source in enumerate(config.corpus.sources):
        path = (source.path or "").partition("**")[0].rstrip("/")
        if is_remote(path):
            key, mixed = "checkpoint_root", f"{config.checkpoint_root}/".startswith(f"{path}/")
        else:
            root = RunDirectory(config.run_directory).root.resolve()
            key, mixed = "run_directory", path != "" and user_path(path).resolve() == root
        if mixed:
            raise UserError(
                f"{key}: {getattr(config, key)} is in the folder of corpus.sources[{index}], and "
                "what the run writes there would be read as text: give it a folder of its own"
            )


def require_splits(config: RunConfig, phases: Collection[str]) -> None:
    """Refuses fractions that leave one of these phases without a document.

    Raises:
        UserError: naming the setting.
    """
    for phase, key in (("reference", "reference_fraction"), ("evaluate", "held_out_fraction")):
        if phase in phases and getattr(config.corpus, key) == 0:
            or_so = ", or import both models (reference.*.checkpoint)" * (phase == "reference")
            raise UserError(
                f"corpus.{key} is 0, so that the phase {phase} would have no document: raise it"
                f"{or_so}"
            )


def keep_inventory(config: RunConfig, directory: RunDirectory) -> None:
    """Writes RUN/tokens/inputs.json, unless it is there: each source's files and their versions."""
    path = _path(directory)
    if not path.exists():
        sources = [_versions(source) for source in config.corpus.sources]
        write_json(path, {"sources": sources, "tokenizer.path": _tokenizer_version(config)})


def expected_signature(config: RunConfig, directory: RunDirectory, redo: str | None = None) -> str:
    """The signature of the corpus, or the recorded one if the corpus is gone.

    `redo` is the phase that is to be repeated, if any.

    Raises:
        UserError: where the corpus is another than when tokenize began, naming the files; and
            where it is not there but still to be read.
    """
    found, changes = compare_inventory(config, directory, redo)
    if changes:
        more = [f"  and {len(changes) - SHOWN:,} more"] if len(changes) > SHOWN else []
        lines = "\n".join([*(f"  {change}" for change in changes[:SHOWN]), *more])
        raise UserError(
            f"{directory.marker('tokenize')}: the corpus is not what it was when tokenize began:\n"
            f"{lines}\nEither put back what was there, or use a new run directory "
            "(--run_directory NEW), or repeat this phase and all that follow from it here (--redo "
            "tokenize)."
        )
    return found


def compare_inventory(
    config: RunConfig, directory: RunDirectory, redo: str | None = None
) -> tuple[str, list[str]]:
    """The signature to expect (see `expected_signature`) and what has changed, a line for each
    file.

    Raises:
        UserError: where the corpus is not there but still to be read.
    """
    marker = read_marker(directory, "tokenize")
    same = marker is not None and _same_settings(config, marker.settings)
    if marker is None or not same or redo == "tokenize" or not _path(directory).exists():
        return corpus_signature(config), []
    kept = read_json(_path(directory))
    gone, changes = list[str](), list[str]()
    for index, source in enumerate(config.corpus.sources):
        key, before = f"corpus.sources[{index}]", kept["sources"][index]
        try:
            changes += (f"{key}: {each}" for each in _changes(before, _versions(source)))
        except UserError as error:
            if not marker.complete:
                raise
            gone.append(f"{key}: {error}")
    try:
        tokenizer = _tokenizer_version(config)
    except UserError:  # of a remote one
        if not marker.complete:
            raise
        tokenizer = "absent"
    if tokenizer == "absent" and marker.complete:
        gone.append(f"tokenizer.path: {config.tokenizer.path} is not there")
    elif tokenizer != kept["tokenizer.path"]:
        changes.append(f"tokenizer.path: {config.tokenizer.path} has changed or gone")
    if gone:
        print_note(f"going on without the corpus, which is tokenized already ({gone[0]})")
    return marker.inputs[CORPUS_FILES], changes


def _path(directory: RunDirectory) -> Path:
    return directory.tokens / "inputs.json"


def _same_settings(config: RunConfig, before: dict[str, Any]) -> bool:
    """Whether the settings of what is read are those of the marker; differences are reported
    elsewhere."""
    now = flatten_settings(config.corpus, "corpus")
    now |= flatten_settings(config.tokenizer, "tokenizer")
    return {k: v for k, v in before.items() if k.startswith(("corpus.", "tokenizer."))} == now


def _versions(source: SourceConfig) -> dict[str, str]:
    """Maps the name of each file that a source is read from to its version."""
    found: dict[str, str] = {}
    for item in list_inputs(source):
        members = [(escape_name(file.name), str(file.size)) for file in item.members]
        found |= dict(members or [(item.name, item.version)])
    return found


def _changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Lists files that were added, removed or changed, ordered by name."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            found.append(f"{name} has gone")
        elif name not in before:
            found.append(f"{name} has come")
        elif before[name] != now[name]:
            old, new = before[name].split(), now[name].split()
            then = " ".join(word for word in old if word not in new)
            found.append(f"{name}: {then} then, {' '.join(w for w in new if w not in old)} now")
    return found


def _tokenizer_version(config: RunConfig) -> str | None:
    content = tokenizer_bytes(config)
    if content is None:
        return None if config.tokenizer.path is None else "absent"
    return hashlib.blake2b(content, digest_size=8).hexdigest()
