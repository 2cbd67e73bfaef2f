"""Kind `jsonl`: files of one JSON object a line, packed or not, to documents."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

from frame_jax import files
from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.documents import Record, Rejection, from_fields
from frame_jax.corpus.fields import RecordError, decode
from frame_jax.corpus.sources.inputs import (
    Input,
    Stripe,
    file_inputs,
    record_id,
    source_name,
    unreadable,
)
from frame_jax.corpus.sources.packed import BYTE_ORDER_MARK, HEAD_BYTES, Unpacked, refuse_other

PLAIN = (".jsonl", ".ndjson", ".json")
PACKED = (".gz", ".zst", ".zstd", ".bz2", ".xz")
PACKED_RATIO = 4  # of text, roughly; only shares out work
READ_BYTES = 1 << 20


def inputs(config: SourceConfig) -> list[Input]:
    """One input a file."""
    suffixes = [plain + packed for plain in PLAIN for packed in ("", *PACKED)]
    return file_inputs(
        config, suffixes, lambda name: PACKED_RATIO if name.lower().endswith(PACKED) else 1
    )


def read(config: SourceConfig, item: Input, stripe: Stripe) -> Iterator[Record]:
    """Documents and rejections of a stripe's lines. Blank lines are no records.

    Raises:
        UserError: for a packed file that is damaged or cut short, or one that holds no text.
    """
    source = source_name(config, item)
    for number, line in enumerate(_lines(item)):
        if not stripe.takes(number) or line.isspace():
            continue
        if number == 0:
            line = line.removeprefix(BYTE_ORDER_MARK)
        try:
            fields = _parse(line)
        except RecordError as error:
            yield Rejection(item.place, number + 1, str(error))
            continue
        yield from_fields(
            fields,
            config,
            default_id=record_id(config, item, number + 1),
            default_source=source,
            file=item.place,
            line=number + 1,
        )


def _lines(item: Input) -> Iterator[bytes]:
    try:
        with (
            files.open_binary(item.path) as file,
            io.BufferedReader(Unpacked(file), READ_BYTES) as stream,
        ):
            refuse_other(item.place, stream.peek(HEAD_BYTES))
            yield from stream
    except OSError as error:
        raise unreadable(item, error) from error


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
