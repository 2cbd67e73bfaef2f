"""What a source yields for each record: a `Document`, or a `Rejection` with its reason.

Fields of a record are looked up by name or dotted path, as text or as an id.
"""

import datetime
import decimal
import hashlib
import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from frame_jax.config.corpus import SourceConfig

FIELDS = ("text_field", "id_field", "source_field", "domain_field", "language_field")


@dataclass(frozen=True, slots=True)
class Document:
    """One usable text and where it came from.

    Attributes:
        id: Unique in the corpus; splits are a function of it.
        text: Not blank, and encodable as UTF-8.
        file: The file that holds the record, as a user would look it up.
        line: The record's line or number in that file, from 1.
        absent: Which of `domain_field` and `language_field` were looked for and not found.
    """

    id: str
    text: str
    source: str
    domain: str
    language: str
    file: str
    line: int
    absent: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record that cannot be used: file, line or record number (from 1), and why."""

    file: str
    line: int
    reason: str


Record = Document | Rejection


def document_from_fields(
    fields: Mapping[str, Any],
    config: SourceConfig,
    *,
    default_id: str,
    default_source: str,
    file: str,
    line: int,
) -> Record:
    """Makes a document from the fields of a JSON object, a Parquet row or a TFDS example.

    Text may be bytes of UTF-8. `default_id` and `default_source` are for a record that carries
    none; `file` and `line` (or number, from 1) say where it is.
    """
    try:
        text = get_text(fields, config.text_field)
        if text is None:
            raise RecordError(f"no text: the field {config.text_field!r} is null or absent")
        if not text.strip():
            raise RecordError("the text is empty")
        domain = get_text(fields, config.domain_field)
        language = get_text(fields, config.language_field)
        found = {"domain_field": domain, "language_field": language}
        return Document(
            id=get_id(fields, config) or default_id,
            text=text,
            source=get_text(fields, config.source_field) or default_source,
            domain=domain or config.domain,
            language=language or config.language,
            file=file,
            line=line,
            absent=tuple(k for k in found if found[k] is None and getattr(config, k) is not None),
        )
    except RecordError as error:
        return Rejection(file, line, str(error))


class RecordError(ValueError):
    """A record cannot be used; the message becomes the reason of its `Rejection`."""


def is_named_by_config(config: SourceConfig, setting: str) -> bool:
    """Whether the config names this field itself, rather than by default."""
    return getattr(config, setting) not in (None, getattr(SourceConfig, setting))


def get_field(fields: Any, name: str) -> Any:
    """The value of a field of an object, or of the JSON text of one; None for null or no field.

    `name` is at the top, or a path such as `meta.set.name` into objects. A name that itself holds a
    dot is found too, and goes before a path.

    Raises:
        RecordError: for a text on the way that begins as JSON does and is none.
    """
    if isinstance(fields, dict) and name in fields:
        return fields[name]
    if isinstance(fields, str | bytes):
        fields = _object(fields, name)
    if not isinstance(fields, Mapping):
        return None
    if name in fields:
        return fields[name]
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        head = ".".join(parts[:length])
        if head in fields:
            return get_field(fields[head], ".".join(parts[length:]))
    return None


def get_text(fields: Mapping[str, Any], name: str | None) -> str | None:
    """The text of a field; None where it is null, absent or not asked for.

    Raises:
        RecordError: for anything but text in UTF-8.
    """
    value = get_field(fields, name) if name is not None else None
    if value is None:
        return None
    if isinstance(value, bytes):
        return decode_utf8(value)
    if not isinstance(value, str):
        raise RecordError(f"the field {name!r} holds {type(value).__name__}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordError(
            f"the field {name!r} holds a lone surrogate at character {error.start}"
        ) from error
    return value


def get_id(fields: Mapping[str, Any], config: SourceConfig) -> str | None:
    """The id that a record carries; None where it carries none.

    Numbers, UUIDs and dates are ids as they are written, bytes that are no text in hexadecimal.
    Anything else is an id only where the config names the field: then the record is wrong.

    Raises:
        RecordError: for an id that cannot be used.
    """
    name = config.id_field
    value = get_field(fields, name) if name is not None else None
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value.hex()
    if isinstance(value, float) and math.isfinite(value):
        # What is a whole number in one file is often a float in the next.
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, float) and math.isnan(value):
        return None  # what is missing, to some programs
    plain = int | uuid.UUID | decimal.Decimal | datetime.date
    if isinstance(value, plain) and not isinstance(value, bool):
        return str(value)
    if value is None or isinstance(value, str) or is_named_by_config(config, "id_field"):
        return get_text(fields, name)
    return None


def decode_utf8(data: bytes) -> str:
    """Decodes UTF-8 bytes as text.

    Raises:
        RecordError: naming the first byte that is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordError(
            f"not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}"
        ) from error


def _object(text: str | bytes, name: str) -> Any:
    """Parses a JSON text; None if it is none."""
    begin = text.lstrip()[:1]
    if begin not in ("{", "[", b"{", b"["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"broken JSON in the text that holds {name!r}: {error}") from error


def unit_hash(name: str, salt: str) -> float:
    """Maps a name to a number uniform in [0, 1), the same on every machine and Python."""
    person = hashlib.blake2b(salt.encode("utf-8"), digest_size=16).digest()
    digest = hashlib.blake2b(name.encode("utf-8"), digest_size=8, person=person).digest()
    # 53 bits are what a float64 in [0, 1) holds; more would round up to 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def assign_split(
    doc_id: str, seed: int, held_out_fraction: float, reference_fraction: float
) -> str:
    """Assigns `held_out`, `reference` or `train`.

    The hash's line from 0 to 1 is cut at the two fractions, so a document keeps its split when
    others come or go, whatever the order in which they are read.
    """
    number = unit_hash(doc_id, f"split {seed}")
    if number < held_out_fraction:
        return "held_out"
    if number < held_out_fraction + reference_fraction:
        return "reference"
    return "train"
