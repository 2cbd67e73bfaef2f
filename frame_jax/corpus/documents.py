"""What a source yields for each record: a `Document`, or a `Rejection` that says why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frame_jax.config.corpus import SourceConfig


@dataclass(frozen=True, slots=True)
class Document:
    """One usable text and where it came from.

    Attributes:
        id: Unique in the corpus; splits are a function of it.
        text: Not blank, and encodable as UTF-8.
        source: Name of the source, for reports and grouping.
        domain: Name of the domain.
        language: Name of the language.
        file: The file that holds the record, as a user would look it up.
        line: The record's line or number in that file, from 1.
    """

    id: str
    text: str
    source: str
    domain: str
    language: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record that cannot be used: file, line or record number (from 1), and why."""

    file: str
    line: int
    reason: str


Record = Document | Rejection


class RecordError(ValueError):
    """Why a record cannot be used; becomes the reason of its `Rejection`."""


def from_fields(
    fields: Mapping[str, Any],
    config: SourceConfig,
    *,
    default_id: str,
    default_source: str,
    file: str,
    line: int,
) -> Record:
    """A document from the fields of a JSON object, a Parquet row or a TFDS example.

    Args:
        fields: Field name to value; text may be bytes of UTF-8.
        config: Names of the fields, and what stands in for a field that is null or absent.
        default_id: The id of a record that carries none.
        default_source: The source of a record that carries none.
        file: Where the record is.
        line: Its line or number there, from 1.
    """
    try:
        text = _string(fields, config.text_field)
        if text is None:
            raise RecordError(f"no text: the field {config.text_field!r} is null or absent")
        if not text.strip():
            raise RecordError("the text is empty")
        return Document(
            id=_string(fields, config.id_field, numbers=True) or default_id,
            text=text,
            source=_string(fields, config.source_field) or default_source,
            domain=_string(fields, config.domain_field) or config.domain,
            language=_string(fields, config.language_field) or config.language,
            file=file,
            line=line,
        )
    except RecordError as error:
        return Rejection(file, line, str(error))


def decode(data: bytes) -> str:
    """UTF-8 bytes as text.

    Raises:
        RecordError: naming the first byte that is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(
            f"not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}"
        ) from error


def _string(fields: Mapping[str, Any], name: str | None, *, numbers: bool = False) -> str | None:
    """The text of a field; None where it is null, absent or not asked for."""
    value = fields.get(name) if name is not None else None
    if value is None:
        return None
    if isinstance(value, bytes):
        return decode(value)
    if numbers and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RecordError(f"the field {name!r} holds {type(value).__name__}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordError(
            f"the field {name!r} holds a lone surrogate at character {error.start}"
        ) from error
    return value
