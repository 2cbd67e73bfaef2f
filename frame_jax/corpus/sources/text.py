"""Kind `text`: a folder of UTF-8 text files, compressed or not, one a document."""

import dataclasses
import hashlib
from collections.abc import Iterator

from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.documents import Record, Rejection, document_from_fields
from frame_jax.corpus.sources.compressed import HEAD_BYTES, other_format
from frame_jax.corpus.sources.inputs import Input, RecordSlice, find_files, open_decompressed
from frame_jax.errors import without_secrets


def list_inputs(config: SourceConfig) -> list[Input]:
    """Lists one input for the whole folder, whose records are its files sorted by path."""
    found, _ = find_files(config, ("",))
    digest, total = hashlib.blake2b(digest_size=16), 0
    for file in found:
        digest.update(f"{file.name} {file.size}\n".encode("utf-8", "replace"))
        total += file.size
    base = without_secrets(found[0].path).removesuffix(found[0].name).rstrip("/")
    return [Input(base, base.rpartition("/")[2], total, digest.hexdigest(), tuple(found))]


def read_records(config: SourceConfig, item: Input, record_slice: RecordSlice) -> Iterator[Record]:
    """Yields documents and rejections of a slice's files; the id is the path inside the folder."""
    no_fields = dataclasses.replace(
        config, id_field=None, source_field=None, domain_field=None, language_field=None
    )
    for number, file in enumerate(item.members):
        if not record_slice.contains(number):
            continue
        shown_path = without_secrets(file.path)
        with open_decompressed(Input(file.path, file.name, file.size, "")) as stream:
            data = stream.read()
        try:
            file.name.encode("utf-8")
            if (other := other_format(data[:HEAD_BYTES], any_text=True)) is not None:
                yield Rejection(shown_path, 1, f"no text but {other[0]}: {other[1]}")
                continue
            text = data.decode("utf-8-sig")
        except UnicodeEncodeError:
            yield Rejection(repr(shown_path), 1, "the file's name is not UTF-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            yield Rejection(shown_path, line, f"not UTF-8: byte 0x{data[error.start]:02x}")
        else:
            yield document_from_fields(
                {config.text_field: text},
                no_fields,
                default_id=f"{config.name}/{file.name}" if config.name else file.name,
                default_source=config.name or config.kind,
                file=shown_path,
                line=1,
            )
