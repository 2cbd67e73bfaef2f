"""Dataclasses come back from JSON as they were written; other content is refused with the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from frame_jax.errors import UserError
from frame_jax.run.directory import read_dataclass, read_json, write_dataclass, write_json


@dataclass(frozen=True)
class Leaf:
    name: str
    error: float | None = None


@dataclass(frozen=True)
class Tree:
    leaves: tuple[Leaf, ...]
    by_name: dict[str, Leaf]
    best: Leaf | None
    sizes: list[int]


TREE = Tree((Leaf("a", 0.5), Leaf("b")), {"x/é": Leaf("c")}, None, [3, 4])


def test_nested_dataclasses_come_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    write_dataclass(path, TREE)
    assert read_dataclass(path, Tree) == TREE
    write_json(path, read_json(path) | {"best": {"name": "d"}})  # what has a default may be absent
    assert read_dataclass(path, Tree).best == Leaf("d")


@pytest.mark.parametrize("change", [{"unknown": 1}, {"leaves": [{"error": 1.0}]}, {"best": 3}])
def test_other_content_is_refused_with_the_name_of_the_file(tmp_path: Path, change: dict) -> None:
    path = tmp_path / "tree.json"
    write_dataclass(path, TREE)
    write_json(path, read_json(path) | change)
    with pytest.raises(UserError, match=r"tree\.json is not as this release writes it.*--redo"):
        read_dataclass(path, Tree)
