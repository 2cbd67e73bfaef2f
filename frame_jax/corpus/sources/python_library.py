"""Kind `python_library`: the text that every Python installation carries, as code and prose.

Code documents are the modules of the standard library and of the distributions this project depends
on, with their docstrings cut out. Prose documents are those docstrings (one document a module), the
`pydoc` topics, and the READMEs and descriptions of the distributions. Nothing is downloaded. The
same Python with the same versions installed gives the same documents, wherever it lives and
whatever else is installed beside.
"""

import ast
import functools
import gc
import hashlib
import importlib.util
import sys
import warnings
from collections import Counter
from collections.abc import Iterator

from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.documents import Document, unit_hash
from frame_jax.corpus.sources import installed
from frame_jax.corpus.sources.inputs import Input, RecordSlice

# Shorter texts, such as empty `__init__.py` files and lone one-line docstrings, teach nothing.
MIN_CHARACTERS = 200


def list_inputs(config: SourceConfig) -> list[Input]:
    """Lists one input, whose records are the installed texts in the order of their names."""
    total = sum(text.size for text in installed.installed_texts())
    version = " ".join(
        [f"python-{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"]
        + [f"{name}-{distribution.version}" for name, distribution in installed.distributions()]
    )
    size = min(total, config.max_bytes or total)
    return [Input(config.kind, config.kind, size, f"{version} {config.max_bytes}")]


def read_records(
    config: SourceConfig, item: Input, record_slice: RecordSlice
) -> Iterator[Document]:
    """Yields documents of a slice's texts; modules that do not parse are left out."""
    for number, text in enumerate(_selected(config.max_bytes)):
        if not record_slice.contains(number):
            continue
        if text.is_module:
            try:
                code, docstrings = separate_docstrings(
                    text.read_text(), text.id.removesuffix(".py")
                )
            except SyntaxError:
                continue
            pieces = [(text.id, code, "code"), (f"{text.id}#docstrings", docstrings, "prose")]
        else:
            pieces = [(text.id, text.read_text().decode("utf-8", "replace"), "prose")]
        for doc_id, content, domain in pieces:
            if len(content.strip()) >= MIN_CHARACTERS:
                yield Document(
                    id=doc_id,
                    text=content,
                    source=config.name or config.kind,
                    domain=domain,
                    language="code" if domain == "code" else "en",
                    file=text.id,
                    line=1,
                )


@functools.lru_cache(maxsize=4)
def _selected(max_bytes: int | None) -> tuple[installed.InstalledText, ...]:
    """The texts to read: copies dropped, then thinned to about `max_bytes`.

    Of copies (vendored packages) the first by name stays. Thinning keeps a text when the hash of
    its name is small enough, so all domains and distributions shrink alike.
    """
    sizes = Counter(text.size for text in installed.installed_texts())
    seen: set[bytes] = set()
    originals: list[installed.InstalledText] = []
    for text in installed.installed_texts():
        if sizes[text.size] > 1:  # only texts of the same size can be the same
            digest = hashlib.blake2b(text.read_text(), digest_size=16).digest()
            if digest in seen:
                continue
            seen.add(digest)
        originals.append(text)
    share = (max_bytes or float("inf")) / max(sum(text.size for text in originals), 1)
    return tuple(text for text in originals if unit_hash(text.id, "python_library") < share)


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def separate_docstrings(source: bytes, module: str) -> tuple[str, str]:
    """Returns the code without docstrings, and each docstring under the name of what it describes.

    The two share no text. The code still parses: a docstring that is all a function does becomes
    `...`, any other goes with its lines. A module with no code but comments gives none at all.
    `module` is its path without suffix, such as `json/decoder`, and names the docstrings.

    Raises:
        SyntaxError: for anything but Python source.
    """
    try:
        text = importlib.util.decode_source(source)
        tree = _parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SyntaxError(str(error)) from error
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
