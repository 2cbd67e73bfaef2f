"""Kind `python_library`: the text that every Python installation carries, as code and prose.

Code documents are the modules of the standard library and of the distributions this project depends
on, with their docstrings cut out. Prose documents are those docstrings (one document a module), the
`pydoc` topics, and the READMEs and descriptions of the distributions. Nothing is downloaded. The
same Python with the same versions installed gives the same documents, wherever it lives and
whatever else is installed beside.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterator

from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.documents import Document
from frame_jax.corpus.sources import installed
from frame_jax.corpus.sources.docstrings import ParseError, separate_docstrings
from frame_jax.corpus.sources.inputs import Input, RecordSlice
from frame_jax.corpus.splits import unit_hash

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
            except ParseError:
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
    sizes: dict[int, int] = {}
    for text in installed.installed_texts():
        sizes[text.size] = sizes.get(text.size, 0) + 1
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
