"""Names that must not come back: private words for what the field has a term for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "frame_jax"

# Of definitions, parameters and variables, whole or as a part between underscores.
NAMES = {
    *("told", "said", "fate", "fates", "doubts", "oddities", "remarks", "mended", "patiently"),
    *("cell", "cells", "stripe", "stripes", "spoken", "crumbs"),
}
# Of definitions, parameters and variables, whole.
WHOLE_NAMES = {
    *("together", "refusal", "place", "places", "made", "maker", "meter", "moved_bias"),
    *("batch_rows", "rows_per_device", "head_width", "accumulate", "renormalise", "batch_ways"),
    *("balance_loss", "read_plan", "make_plan", "lower_bound", "evenly", "judge", "in_order"),
}
# Of docstrings and comments.
WORDS = {
    *("told", "said", "fate", "fates", "doubts", "door", "doors", "mend", "mends", "mended"),
    *("company", "riddle", "crumbs"),
}
HTML = {"report/html.py", "report/sections.py", "report/study_results.py", "report/figures.py"}
TABLE_NAMES = {"cell", "cells"}  # of a table of the report


def names_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of everything that a module defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def offences(text: str, name: str) -> list[str]:
    """`file:line word` for each name and each word of a comment or docstring that is listed."""
    found = []
    for line, defined in names_in(ast.parse(text)):
        parts = set(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", defined).lower().strip("_").split("_"))
        listed = parts & NAMES | {defined.strip("_")} & WHOLE_NAMES
        if listed - (TABLE_NAMES if name in HTML else set()):
            found.append(f"{name}:{line} {defined}")
    prose = [(getattr(n, "lineno", 1), d) for n in ast.walk(ast.parse(text)) if (d := docstring(n))]
    prose += [(i, c) for i, line in enumerate(text.split("\n"), 1) if (c := comment(line))]
    for line, words in prose:
        found += [f"{name}:{line} {w}" for w in re.findall(r"[a-z]+", words.lower()) if w in WORDS]
    return found


def docstring(node: ast.AST) -> str | None:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        return ast.get_docstring(node)
    return None


def comment(line: str) -> str | None:
    match = re.search(r"(?:^|\s)# (.*)$", line)
    return match.group(1) if match else None


def test_no_private_word_comes_back() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    assert [
        offence
        for path in files
        for offence in offences(path.read_text("utf-8"), str(path.relative_to(PACKAGE)))
    ] == []


@pytest.mark.parametrize(
    "text",
    [
        "def told(): ...",
        "def f(batch_rows): ...",
        "cell_rows = 1",
        "class CellRows: ...",
        'def f():\n    """The door of it."""',
        "x = 1  # mend it",
    ],
)
def test_a_private_word_is_named(text: str) -> None:
    assert offences(text, "a.py")


def test_the_word_for_a_part_of_a_table_is_allowed_there() -> None:
    assert not offences("cell = 1", "report/html.py") and offences("cell = 1", "a.py")
