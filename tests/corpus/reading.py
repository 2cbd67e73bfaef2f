"""What a source gives, for tests."""

from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.documents import Document, Record
from frame_jax.corpus.sources import SOURCES
from frame_jax.corpus.sources.inputs import RecordSlice


def read(config: SourceConfig, record_slice: RecordSlice | None = None) -> list[Record]:
    """All records of a stripe of a source's inputs; of all of them without one."""
    source = SOURCES[config.kind]
    return [
        record
        for item in source.list_inputs(config)
        for record in source.read_records(config, item, record_slice or RecordSlice())
    ]


def stripes(config: SourceConfig, count: int) -> list[Record]:
    return [record for k in range(count) for record in read(config, RecordSlice(k, count))]


def texts(config: SourceConfig) -> list[str]:
    """The texts of a source all of whose records are documents."""
    found = read(config)
    assert all(isinstance(record, Document) for record in found), found
    return [record.text for record in found if isinstance(record, Document)]
