"""Kind `python_library`: code and prose from what is installed."""

import ast
import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.sources import installed, python_library
from frame_jax.corpus.sources.inputs import RecordSlice
from frame_jax.corpus.sources.python_library import separate_docstrings

SMALL = SourceConfig(kind="python_library", max_bytes=1_500_000)


def read(config, record_slice=None):
    [item] = python_library.list_inputs(config)
    return list(python_library.read_records(config, item, record_slice or RecordSlice()))


@pytest.fixture(scope="module")
def documents():
    return read(SMALL)


def test_there_is_enough_text_of_both_domains(documents):
    assert sum(text.size for text in python_library._selected(None)) > 22_000_000
    sizes = Counter()
    for document in documents:
        sizes[document.domain, document.language] += len(document.text.encode())
    assert sizes.keys() == {("code", "code"), ("prose", "en")}
    assert sizes["prose", "en"] > 0.15 * sizes.total()
    assert abs(sizes.total() / SMALL.max_bytes - 1) < 0.3


def test_ids_and_texts_are_unique_and_name_no_place_on_this_machine(documents):
    assert len({d.id for d in documents}) == len(documents)
    assert len({d.text for d in documents}) == len(documents)
    assert not any(d.id.startswith("/") or ".." in d.id.split("/") for d in documents)
    assert {"stdlib/json/decoder.py", "pydoc/assert"} <= {t.id for t in installed.installed_texts()}


@pytest.mark.slow
def test_code_and_docstrings_share_no_docstring(documents):
    code = {d.id: d.text for d in documents if d.domain == "code"}
    checked = 0
    for document in documents:
        module = document.id.removesuffix("#docstrings")
        if module == document.id or module not in code:
            continue
        tree = ast.parse(code[module])
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                assert ast.get_docstring(node) is None, module
        long_lines = [line.strip() for line in document.text.split("\n") if len(line) > 60]
        lines = set(code[module].split("\n"))
        assert not any(line in lines for line in long_lines), module
        checked += 1
    assert checked > 20


def test_stripes_hold_each_document_once(documents):
    found = [d for k in range(3) for d in read(SMALL, RecordSlice(k, 3))]
    assert sorted(d.id for d in found) == [d.id for d in sorted(documents, key=lambda d: d.id)]


def test_another_process_elsewhere_finds_the_same_texts(tmp_path, documents):
    program = (
        "from frame_jax.config.corpus import SourceConfig\n"
        "from frame_jax.corpus.sources import python_library as p, inputs\n"
        "import hashlib\n"
        f"c = SourceConfig(kind='python_library', max_bytes={SMALL.max_bytes})\n"
        "d = hashlib.sha256()\n"
        "for x in p.read_records(c, p.list_inputs(c)[0], inputs.RecordSlice()):\n"
        "    d.update((x.id + x.text).encode())\n"
        "print(d.hexdigest())"
    )
    root = str(Path(__file__).resolve().parents[3])
    environment = dict(os.environ, PYTHONHASHSEED="7", PYTHONPATH=root)
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    digest = hashlib.sha256()
    for document in documents:
        digest.update((document.id + document.text).encode())
    assert done.stdout.strip() == digest.hexdigest()


def test_copies_of_a_file_are_read_once(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("x = 1\n" * 100)
    (tmp_path / "b.py").write_text("x = 1\n" * 100)
    (tmp_path / "c.py").write_text("y = 1\n" * 100)
    texts = tuple(
        installed.InstalledText(f"pkg/{n}.py", 600, True, tmp_path / f"{n}.py")
        for n in ("a", "b", "c")
    )
    monkeypatch.setattr(installed, "installed_texts", lambda: texts)
    python_library._selected.cache_clear()
    try:
        found = read(SourceConfig(kind="python_library"))
    finally:
        python_library._selected.cache_clear()
    assert [d.id for d in found] == ["pkg/a.py", "pkg/c.py"]


SOURCE = '''\
"""Module: 模块."""
import os  # after

class A:
    """Class A.

    More.\f
    """
    x = 1

    def only(self):
        """Only this."""

    async def one_line(self): "One line."

    def two(self):
        "Two"; return 2

    def bare(self):
        ("In brackets.")
        return """not a docstring"""

if os:
    def inner():
        """Inner: é."""  # kept comment
        pass
'''


def test_docstrings_are_cut_out_exactly():
    code, prose = separate_docstrings(SOURCE.encode(), "pkg/a/__init__")
    for text in ("Module: 模块.", "Class A.", "Only this.", "One line.", "Two", "Inner: é."):
        assert text in prose and text not in code
    assert "In brackets." in prose and "In brackets." not in code
    assert "not a docstring" in code and "# kept comment" in code and "# after" in code
    names = ["pkg.a", "pkg.a.A", "pkg.a.A.only", "pkg.a.A.one_line", "pkg.a.A.two", "pkg.a.A.bare"]
    assert [p.split("\n")[0] for p in prose.split("\n\n\n")] == [*names, "pkg.a.inner"]
    # Besides docstrings, the program is the same.
    left = ast.parse(code)
    assert not any(
        ast.get_docstring(n)
        for n in ast.walk(left)
        if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert [type(n) for n in left.body] == [ast.Import, ast.ClassDef, ast.If]


def test_modules_without_statements_and_without_sense():
    assert separate_docstrings(b'# Licence\n"""Doc."""\n', "m") == ("", "m\n\nDoc.\n")
    for bad in (b"def (:", b"\0", b"# coding: nonsense\n", b"x = '\xff'", b"(" * 5000):
        with pytest.raises(SyntaxError):
            separate_docstrings(bad, "m")


@settings(max_examples=50)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"\\\0\r'), min_size=1))
def test_any_docstring_goes_and_the_rest_stays(text):
    source = f'def f():\n    """.{text}."""\n    return "kept"\n'
    code, _ = separate_docstrings(source.encode(), "m")
    assert code == 'def f():\n    return "kept"\n'


def test_a_dependency_that_came_later_leaves_the_corpus_as_it_was(monkeypatch):
    def requirements(distribution):
        is_project = distribution.metadata["Name"].lower().replace("_", "-") == installed.PROJECT
        return ["numpy", *installed.LATER_DEPENDENCIES] if is_project else []

    monkeypatch.setattr(installed, "_requirements", requirements)
    found = {name for name, _ in installed.distributions.__wrapped__()}
    assert found == {installed.PROJECT, "numpy"}
