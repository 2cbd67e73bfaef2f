"""Divides the corpus into `corpus.parts` equal parts, samples it, and computes its signature."""

import hashlib
import heapq
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from frame_jax import files
from frame_jax.config.corpus import CorpusConfig, SourceConfig
from frame_jax.config.run import RunConfig
from frame_jax.corpus.documents import Document, Record
from frame_jax.corpus.sources import SOURCES
from frame_jax.corpus.sources.inputs import Input, RecordSlice

SAMPLE_INPUTS = 64  # read side by side
SAMPLE_STRIDE = 16  # at most this many records are passed over for each one looked at


@dataclass(frozen=True)
class Chunk:
    """One slice of one input, of which parts consist."""

    source: SourceConfig
    item: Input
    record_slice: RecordSlice

    def read_records(self) -> Iterator[Record]:
        if self.item.ignored:
            return iter(())
        return SOURCES[self.source.kind].read_records(self.source, self.item, self.record_slice)


def plan_parts(corpus: CorpusConfig) -> list[list[Chunk]]:
    """Lists the chunks of every part, in the order of the sources; parts may be empty.

    Inputs larger than a part's fair share are cut into stripes, so that one big file is still
    worked on in parallel; each reader then passes over the others' records without parsing them.
    """
    items = _inputs(corpus)
    slice_counts = _slice_counts([item.size for _, item in items], corpus.parts)
    chunks = [
        (item.size / count, Chunk(source, item, RecordSlice(index, count)))
        for (source, item), count in zip(items, slice_counts, strict=True)
        for index in range(count)
    ]
    parts: list[list[int]] = [[] for _ in range(corpus.parts)]
    loads = [(0.0, part) for part in range(corpus.parts)]
    # The largest first, each to the part with the least to do.
    for order in sorted(range(len(chunks)), key=lambda i: (-chunks[i][0], i)):
        load, part = loads[0]
        parts[part].append(order)
        heapq.heapreplace(loads, (load + chunks[order][0], part))
    return [[chunks[order][1] for order in sorted(part)] for part in parts]


def sample_documents(corpus: CorpusConfig, max_bytes: int) -> Iterator[Document]:
    """Yields documents from all over the corpus, at most about `max_bytes` of UTF-8 text in all.

    One document in turn from every input (from 64 evenly spaced ones where there are more); of a
    corpus larger than `max_bytes` only every k-th record, k at most 16. The same whatever
    `corpus.parts` is.
    """
    items = _inputs(corpus)
    if len(items) > SAMPLE_INPUTS:
        items = [items[i * len(items) // SAMPLE_INPUTS] for i in range(SAMPLE_INPUTS)]
    stride = sum(item.size for _, item in items) // max_bytes
    record_slice = RecordSlice(0, min(max(stride, 1), SAMPLE_STRIDE))
    readers = [Chunk(source, item, record_slice).read_records() for source, item in items]
    documents = [(r for r in reader if isinstance(r, Document)) for reader in readers]
    taken = 0
    for document in itertools.chain.from_iterable(itertools.zip_longest(*documents)):
        if document is not None:
            yield document
            taken += len(document.text.encode("utf-8"))
            if taken >= max_bytes:
                return


def corpus_signature(config: RunConfig) -> str:
    """A short hash of what the corpus holds, as far as names, sizes and versions tell.

    Another one means that files came, went or changed size, that Python or a distribution changed
    (`python_library`), or that a given tokenizer file changed.

    Raises:
        UserError: where a source has nothing to read.
    """
    digest = hashlib.blake2b(digest_size=8)
    for source, item in _inputs(config.corpus):
        digest.update(f"{source.kind} {item.name} {item.version}\n".encode("utf-8", "replace"))
    if config.tokenizer.path is not None:
        content = tokenizer_bytes(config)
        digest.update(b"absent" if content is None else content)
    return digest.hexdigest()


def tokenizer_bytes(config: RunConfig) -> bytes | None:
    """The content of the file in `tokenizer.path`; None where there is none."""
    if config.tokenizer.path is None:
        return None
    path = files.local_copy(config.tokenizer.path)
    return path.read_bytes() if path.is_file() else None


def list_inputs(source: SourceConfig) -> list[Input]:
    """Lists what a source can be read from.

    Raises:
        UserError: where there is nothing.
    """
    return SOURCES[source.kind].list_inputs(source)


def _inputs(corpus: CorpusConfig) -> list[tuple[SourceConfig, Input]]:
    return [(source, item) for source in corpus.sources for item in list_inputs(source)]


def _slice_counts(sizes: list[int], parts: int) -> list[int]:
    """Into how many slices to cut each input.

    The input with the largest stripes gets one more, until no stripe exceeds a part's fair share:
    as many stripes as parts where inputs are few, at most one more a part where they are many.
    """
    fair = sum(sizes) / parts
    spare = parts if len(sizes) >= parts else parts - len(sizes)
    counts = [1] * len(sizes)
    heap = [(-float(size), i) for i, size in enumerate(sizes)]
    heapq.heapify(heap)
    while spare and -heap[0][0] > fair:
        _, i = heap[0]
        counts[i] += 1
        heapq.heapreplace(heap, (-sizes[i] / counts[i], i))
        spare -= 1
    return counts
