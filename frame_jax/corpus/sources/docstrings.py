"""Separates Python source into code without docstrings, and the docstrings as prose."""

from __future__ import annotations

import ast
import gc
import importlib.util
import warnings
from collections.abc import Iterator

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class ParseError(ValueError):
    """The text is not Python that this interpreter parses."""


def separate_docstrings(source: bytes, module: str) -> tuple[str, str]:
    """Returns the code without docstrings, and each docstring under the name of what it describes.

    The two share no text. The code still parses: a docstring that is all a function does becomes
    `...`, any other goes with its lines. A module with no code but comments gives none at all.

    Args:
        source: The bytes of a module.
        module: Its path without suffix, such as `json/decoder`; names the docstrings.

    Raises:
        ParseError: for anything but Python source.
    """
    try:
        text = importlib.util.decode_source(source)
        tree = _parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ParseError(str(error)) from error
    lines = [line.encode("utf-8") for line in text.split("\n")]
    name = module.removesuffix("/__init__").replace("/", ".")
    sections, statements = [], []
    for qualified, node in _documented(tree, name):
        docstring = ast.get_docstring(node)
        if docstring is not None:
            sections.append(f"{qualified}\n\n{docstring.strip()}\n")
            statements.append((node.body[0], len(node.body) == 1 and node is not tree))
    # From the end, so that earlier positions stay right.
    for statement, alone in reversed(statements):
        _remove_docstring(lines, statement, alone)
    has_code = len(tree.body) > (ast.get_docstring(tree) is not None)
    code = b"\n".join(lines).decode("utf-8") if has_code else ""
    prose = "\n\n".join(sections)
    # A string literal may spell out a lone surrogate, which no UTF-8 file can hold.
    return code, prose.encode("utf-8", "replace").decode("utf-8")


def _parse(text: str) -> ast.Module:
    enabled = gc.isenabled()
    gc.disable()  # a syntax tree is a million small objects without cycles: twice as fast
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    finally:
        if enabled:
            gc.enable()


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, Documented]]:
    """Yields everything that can have a docstring, with its qualified name, in source order."""
    if isinstance(node, Documented):
        yield name, node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _documented(child, f"{name}.{child.name}")
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            yield from _documented(child, name)


def _remove_docstring(lines: list[bytes], statement: ast.stmt, alone: bool) -> None:
    """Removes a docstring from `lines` in place (columns count UTF-8 bytes, lines from 1)."""
    assert statement.end_lineno is not None and statement.end_col_offset is not None
    first, last = statement.lineno - 1, statement.end_lineno - 1
    before = lines[first][: statement.col_offset]
    after = lines[last][statement.end_col_offset :]
    if before.strip() or after.strip() or alone:
        lines[first : last + 1] = [before + b"..." + after]
    else:
        del lines[first : last + 1]
