"""Kind `jsonl`: files of one JSON object a line, plain, .gz or .zst, to documents."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.documents import Record, RecordError, Rejection, decode, from_fields
from frame_jax.corpus.sources.inputs import Input, Stripe, find_files, record_id, source_name
from frame_jax.errors import UserError

PLAIN = (".jsonl", ".ndjson", ".json")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
COMPRESSION_RATIO = 4  # of text, roughly; only shares out work
READ_BYTES = 1 << 20


def inputs(config: SourceConfig) -> list[Input]:
    """One input a file."""
    suffixes = [plain + packed for plain in PLAIN for packed in ("", *COMPRESSIONS)]
    base, files = find_files(config, suffixes)
    items = []
    for file in files:
        name, size = file.relative_to(base).as_posix(), file.stat().st_size
        ratio = COMPRESSION_RATIO if file.suffix in COMPRESSIONS else 1
        items.append(Input(str(file), name, size * ratio, f"{name} {size}"))
    return items


def read(config: SourceConfig, item: Input, stripe: Stripe) -> Iterator[Record]:
    """Documents and rejections of a stripe's lines. Blank lines are no records.

    Raises:
        UserError: for a compressed file that is damaged or cut short.
    """
    source = source_name(config, Path(item.path))
    for number, line in enumerate(_lines(item.path)):
        if not stripe.takes(number) or line.isspace():
            continue
        if number == 0:
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            fields = _parse(line)
        except RecordError as error:
            yield Rejection(item.path, number + 1, str(error))
            continue
        yield from_fields(
            fields,
            config,
            default_id=record_id(config, item, number + 1),
            default_source=source,
            file=item.path,
            line=number + 1,
        )


def _lines(path: str) -> Iterator[bytes]:
    compression = COMPRESSIONS.get(Path(path).suffix)
    try:
        with pa.input_stream(path, compression=compression) as stream:
            yield from io.BufferedReader(stream, READ_BYTES)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error}): replace the file, or leave it out of `path`"
        ) from error


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(decode(line))
    except json.JSONDecodeError as error:
        raise RecordError(f"broken JSON: {error.msg} at character {error.pos}") from error
    except (ValueError, RecursionError) as error:  # numbers too long, lists nested too deep
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"broken JSON: {error}") from error
    if not isinstance(value, dict):
        raise RecordError(f"not a JSON object but {type(value).__name__}")
    return value
