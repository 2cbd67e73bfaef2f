"""Kind `jsonl`: files of one JSON object a line, compressed or not."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.documents import FIELDS, Record, RecordError, Rejection, decode_utf8
from frame_jax.corpus.sources import compressed, inputs
from frame_jax.errors import UserError

PLAIN_SUFFIXES = (".jsonl", ".ndjson", ".json")
COMPRESSED_SUFFIXES = (".gz", ".zst", ".zstd", ".bz2", ".xz")
COMPRESSION_RATIO = 4  # of text, roughly; only shares out work


def list_inputs(config: SourceConfig) -> list[inputs.Input]:
    """One input a file."""
    suffixes = [plain + packed for plain in PLAIN_SUFFIXES for packed in ("", *COMPRESSED_SUFFIXES)]
    return inputs.file_inputs(
        config,
        suffixes,
        lambda name: COMPRESSION_RATIO if name.lower().endswith(COMPRESSED_SUFFIXES) else 1,
    )


def read_records(
    config: SourceConfig, item: inputs.Input, record_slice: inputs.RecordSlice
) -> Iterator[Record]:
    """Yields documents and rejections of a slice's lines; blank lines are no records.

    Raises:
        UserError: for a packed file that is damaged or cut short, or one that holds no text.
    """
    asked = {part for name in FIELDS for part in (getattr(config, name) or "").split(".")}

    def one_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            if twice := sorted(name for name in found.keys() & asked if names.count(name) > 1):
                raise RecordError(f"several values of one name: {twice[0]!r}")
        return found

    with inputs.open_decompressed(item) as stream:
        if (found := compressed.other_format(stream.peek(compressed.HEAD_BYTES))) is not None:
            advice = compressed.KIND_ADVICE.get(*found)
            raise UserError(
                f"{item.display_path}: is {found[0]}, not JSON lines: {advice}, or leave it out of "
                "`path`"
            )
        for number, line in enumerate(stream):
            if not record_slice.contains(number) or line.isspace():
                continue
            if number == 0:
                line = line.removeprefix(compressed.BYTE_ORDER_MARK)
            try:
                fields = _parse(line, one_of_each)
            except RecordError as error:
                yield Rejection(item.display_path, number + 1, str(error))
                continue
            yield inputs.document_of_file(fields, config, item, number + 1)


def _parse(line: bytes, make: Callable[[list[tuple[str, Any]]], Any]) -> dict[str, Any]:
    try:
        value = json.loads(decode_utf8(line), object_pairs_hook=make)
    except json.JSONDecodeError as error:
        raise RecordError(f"broken JSON: {error.msg} at character {error.pos}") from error
    except (ValueError, RecursionError) as error:  # numbers too long, lists nested too deep
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"broken JSON: {error}") from error
    if not isinstance(value, dict):
        raise RecordError(f"not a JSON object but {type(value).__name__}")
    return value
