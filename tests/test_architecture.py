"""The direction of imports: what docs/architecture.md says may import what, read off the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "frame_jax"


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of everything of this package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = (REPOSITORY / whole.replace(".", "/")).with_suffix(".py").exists()
                yield node.lineno, whole if is_module else str(node.module)


def package(module: str) -> str:
    """The folder, or the file at the top, that a module of this package belongs to."""
    return module.split(".")[1]


def allowed() -> dict[str, set[str]]:
    """Package -> packages it may import, from the table of docs/architecture.md."""
    text = (REPOSITORY / "docs" / "architecture.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|$", text, re.M)
    return {name: set(re.findall(r"`(\w+)`", others)) for name, others in rows}


def offences(files: dict[str, list[tuple[int, str]]], table: dict[str, set[str]]) -> list[str]:
    """`file:line imports module` for each import that the table does not allow."""
    return [
        f"{name}:{line} imports {module}, which {package(module_of(name))} may not"
        for name, found in files.items()
        for line, module in found
        if package(module) not in table[package(module_of(name))] | {package(module_of(name))}
    ]


def module_of(name: str) -> str:
    return name.removesuffix(".py").replace("/", ".")


def package_files() -> dict[str, list[tuple[int, str]]]:
    return {
        str(path.relative_to(REPOSITORY)): [
            (line, module) for line, module in imports(path) if module.startswith("frame_jax.")
        ]
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent != PACKAGE or path.name != "__init__.py"
    }


@pytest.mark.slow
def test_imports_go_the_way_the_page_says() -> None:
    files, table = package_files(), allowed()
    packages = {package(module_of(name)) for name in files}
    assert packages == set(table), "docs/architecture.md must have a line for each package"
    assert offences(files, table) == []


def test_the_page_itself_has_no_circle() -> None:
    table, done = allowed(), set[str]()
    while ready := [r for r, others in table.items() if r not in done and others <= done]:
        done |= set(ready)
    assert done == set(table), f"these wait for each other: {sorted(set(table) - done)}"


def test_no_module_imports_itself_through_others() -> None:
    """Imports inside functions count too: they hide a circle, they do not open it."""
    needs = {module_of(name): {m for _, m in found} for name, found in package_files().items()}
    done = {m for found in needs.values() for m in found if m not in needs}  # folders
    while ready := [m for m, others in needs.items() if m not in done and others <= done]:
        done |= set(ready)
    assert set(needs) <= done, f"these wait for each other: {sorted(set(needs) - done)}"


def test_every_folder_has_its_tests_in_a_folder_of_its_name() -> None:
    """Folders in folders too, where they have tests of their own; each is a package."""
    tests = REPOSITORY / "tests"
    packages = {path.parent.relative_to(PACKAGE) for path in PACKAGE.glob("*/__init__.py")}
    assert len(packages) > 10
    for package in packages:
        assert list((tests / package).rglob("test_*.py")), f"tests/{package} has no test"
    folders = {path.parent for path in tests.rglob("test_*.py")}
    assert [f for f in folders if not (f / "__init__.py").exists()] == []
    inner = {f.relative_to(tests) for f in folders if len(f.relative_to(tests).parts) > 1}
    assert inner == {f for f in inner if (PACKAGE / f).is_dir()}


@pytest.mark.parametrize("module", ["frame_jax.main", "frame_jax.training.trainer"])
def test_an_import_upward_is_named(module: str) -> None:
    files = {"frame_jax/models/layers.py": [(7, module)]}
    (offence,) = offences(files, allowed())
    assert offence.startswith(f"frame_jax/models/layers.py:7 imports {module}")
