"""The kinds of source: one module each, with the two functions of `Source`."""

from collections.abc import Iterator
from typing import Protocol

from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.documents import Record
from frame_jax.corpus.sources import jsonl, python_library, tables, text, tfds
from frame_jax.corpus.sources.inputs import Input, RecordSlice


class Source(Protocol):
    """What a module in this package offers."""

    def list_inputs(self, config: SourceConfig) -> list[Input]:
        """Lists what can be read, always in the same order, from names and sizes alone.

        Raises:
            UserError: where there is nothing to read.
        """

    def read_records(
        self, config: SourceConfig, item: Input, record_slice: RecordSlice
    ) -> Iterator[Record]:
        """The records of one stripe of an input, in order.

        The stripes of an input share out its records: each is in exactly one of them.

        Raises:
            UserError: where the input as a whole cannot be read.
        """


SOURCES: dict[str, Source] = {
    "arrow": tables,
    "jsonl": jsonl,
    "parquet": tables,
    "python_library": python_library,
    "text": text,
    "tfds": tfds,
}
