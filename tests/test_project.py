"""What is written in two places agrees: the version, what is checked before a commit, examples."""

from __future__ import annotations

import doctest
import importlib
import re
import tomllib

import pytest
import yaml

import frame_jax
from tests.programs import REPOSITORY

# Those of frame_jax.api need a folder of models: `tests/api` has one.
EXAMPLES = [
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    for path in sorted((REPOSITORY / "frame_jax").rglob("*.py"))
    if ">>>" in path.read_text("utf-8") and path.parent.name != "api"
]


@pytest.mark.slow
@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_of_docstrings_give_what_they_show(module: str) -> None:
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0 and found.failed == 0


def test_the_version_is_everywhere_the_same() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["dynamic"] == ["version"]
    attribute = project["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert attribute == "frame_jax.__version__"
    changes = (REPOSITORY / "CHANGELOG.md").read_text("utf-8")
    assert re.findall(r"^## (.*)$", changes, re.M)[0] == frame_jax.__version__
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == frame_jax.__version__


def test_hooks_run_what_make_check_runs() -> None:
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    (check,) = re.findall(r"^check:.*\n((?:\t.*\n)+)", makefile, re.M)
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in check.splitlines()]
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text("utf-8"))
    (local,) = hooks["repos"]
    assert local["repo"] == "local"
    assert [hook["entry"] for hook in local["hooks"]] == commands
    assert all(hook["language"] == "system" for hook in local["hooks"])
