"""What the corpus' files were when tokenize began, kept in the run, and what they are now.

No phase after tokenize reads the corpus. It may be moved away then; but if it is there, it must be
what it was.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from frame_jax.config.run import RunConfig
from frame_jax.config.settings import flatten_settings
from frame_jax.corpus.parts import inputs_signature, list_inputs, tokenizer_bytes
from frame_jax.corpus.sources.inputs import Input, escape_name
from frame_jax.errors import UserError, print_note
from frame_jax.run.directory import RunDirectory, read_json, write_json

SHOWN = 10


def keep_inventory(config: RunConfig, directory: RunDirectory) -> None:
    """Writes RUN/tokens/inputs.json, unless it is there: each source's files and their versions."""
    path = _path(directory)
    if not path.exists():
        sources = [_versions(list_inputs(source)) for source in config.corpus.sources]
        write_json(path, {"sources": sources, "tokenizer.path": _tokenizer_version(config)})


def expected_signature(config: RunConfig, directory: RunDirectory, redo: str | None = None) -> str:
    """The signature of the corpus, or of what was made of it where it is not there any more.

    Args:
        config: The run's settings.
        directory: The run.
        redo: The phase that is to be repeated, if any.

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
    """The signature to expect, see `expected_signature`, and what has changed, a line for each
    file.

    Raises:
        UserError: where the corpus is not there but still to be read.
    """
    path = directory.marker("tokenize")
    marker = read_json(path) if path.exists() else None
    if marker is None or redo == "tokenize" or not _same_settings(config, marker["settings"]):
        return inputs_signature([list_inputs(s) for s in config.corpus.sources], config), []
    kept = read_json(_path(directory)) if _path(directory).exists() else None
    recorded: str = marker["inputs"]["corpus files"]
    now: list[list[Input] | None] = []
    gone = []
    for index, source in enumerate(config.corpus.sources):
        try:
            now.append(list_inputs(source))
        except UserError as error:
            if not marker["complete"]:
                raise
            now.append(None)
            gone.append(f"corpus.sources[{index}]: {error}")
    try:
        tokenizer = _tokenizer_version(config)
    except UserError:  # of a remote one
        if not marker["complete"]:
            raise
        tokenizer = "absent"
    if tokenizer == "absent" and marker["complete"]:
        gone.append(f"tokenizer.path: {config.tokenizer.path} is not there")
        tokenizer = None
    if gone:
        print_note(f"going on without the corpus, which is tokenized already ({gone[0]})")
        if kept is None:
            return recorded, []
    else:
        found = inputs_signature([items for items in now if items is not None], config)
        if kept is None or found == recorded:
            return found, []
    changes = [
        f"corpus.sources[{index}]: {change}"
        for index, (items, before) in enumerate(zip(now, kept["sources"], strict=True))
        if items is not None
        for change in _changes(before, _versions(items))
    ]
    if tokenizer not in (None, kept["tokenizer.path"]):
        changes.append(f"tokenizer.path: {config.tokenizer.path} has changed or gone")
    return recorded, changes


def _path(directory: RunDirectory) -> Path:
    return directory.tokens / "inputs.json"


def _same_settings(config: RunConfig, before: dict[str, Any]) -> bool:
    """Whether the run's settings of what is read are those of the marker; others are reported by
    the marker."""
    now = flatten_settings(config.corpus, "corpus") | flatten_settings(
        config.tokenizer, "tokenizer"
    )
    return {k: v for k, v in before.items() if k.startswith(("corpus.", "tokenizer."))} == now


def _versions(items: list[Input]) -> dict[str, str]:
    """Name to version of every file."""
    found: dict[str, str] = {}
    for item in items:
        members = [(escape_name(file.name), str(file.size)) for file in item.members]
        found |= dict(members or [(item.name, item.version)])
    return found


def _changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """What came, what went and what is another, in the order of the names."""
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
