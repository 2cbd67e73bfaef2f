"""Where every artefact of a run lives, and the two ways of writing one: whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class RunDirectory:
    """Paths under one run directory: the contract between phases.

    A phase reads what earlier phases wrote here and nothing else of theirs.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer" / "tokenizer.json"

    @property
    def tokens(self) -> Path:
        return self.root / "tokens"

    @property
    def rejected(self) -> Path:
        return self.tokens / "rejected.jsonl"

    def reference(self, name: str) -> Path:
        """`weak`, `strong`: a trained model. `rows`: the rows that trained them."""
        return self.root / "reference" / name

    @property
    def scores(self) -> Path:
        return self.root / "scores"

    @property
    def quadrants(self) -> Path:
        return self.root / "quadrants"

    @property
    def partition(self) -> Path:
        return self.quadrants / "partition.json"

    @property
    def assignment(self) -> Path:
        return self.quadrants / "assignment.parquet"

    def pretrain(self, curriculum: str) -> Path:
        return self.root / "pretrain" / curriculum

    def evaluation(self, curriculum: str) -> Path:
        return self.root / "evaluation" / f"{curriculum}.json"

    @property
    def report(self) -> Path:
        return self.root / "report"

    def marker(self, unit: str) -> Path:
        return self.root / f"{unit}.json"


def part_name(index: int, count: int, suffix: str) -> str:
    """`part-00003-of-00008.parquet` for index 3 of 8 parts."""
    return f"part-{index:05d}-of-{count:05d}{suffix}"


def list_parts(folder: Path, suffix: str) -> list[Path]:
    """The parts in a folder, in order of their index."""
    return sorted(folder.glob(f"part-*-of-*{suffix}"))


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path; renames it to `path` when the block succeeds, removes it otherwise.

    The content reaches the disk before the rename, so that a name that exists is a whole file. The
    temporary name keeps the suffix, because some writers choose a format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(root: Path) -> None:
    """Removes what killed programs left under temporary names; no other may be at work in `root`."""
    for path in list(root.rglob(".tmp-*")):
        remove(path)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
        )


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
