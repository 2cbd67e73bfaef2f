"""Kind `text`: a folder of UTF-8 text files to documents, one a file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.documents import Record, Rejection, from_fields
from frame_jax.corpus.sources.inputs import Input, Stripe, find_files


def inputs(config: SourceConfig) -> list[Input]:
    """One input for the whole folder: its records are its files, sorted by path."""
    base, files = find_files(config, ("",))
    digest, total = hashlib.blake2b(digest_size=16), 0
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(base).as_posix()} {size}\n".encode("utf-8", "replace"))
        total += size
    return [Input(str(base), base.name, total, digest.hexdigest())]


def read(config: SourceConfig, item: Input, stripe: Stripe) -> Iterator[Record]:
    """Documents and rejections of a stripe's files. The id is the path inside the folder."""
    base, files = find_files(config, ("",))
    for number, file in enumerate(files):
        if not stripe.takes(number):
            continue
        name = file.relative_to(base).as_posix()
        data = file.read_bytes()
        try:
            name.encode("utf-8")
            text = data.decode("utf-8-sig")
        except UnicodeEncodeError:
            yield Rejection(repr(str(file)), 1, "the file's name is not UTF-8")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            yield Rejection(str(file), line, f"not UTF-8: byte 0x{data[error.start]:02x}")
        else:
            yield from_fields(
                {config.text_field: text},
                config,
                default_id=f"{config.name}/{name}" if config.name else name,
                default_source=config.name or config.kind,
                file=str(file),
                line=1,
            )
