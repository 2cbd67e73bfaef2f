"""Looks up fields of a record by name or dotted path, as text or as an id."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import uuid
from collections.abc import Mapping
from typing import Any

from frame_jax.config.corpus import SourceConfig

FIELDS = ("text_field", "id_field", "source_field", "domain_field", "language_field")


class RecordError(ValueError):
    """A record cannot be used; the message becomes the reason of its `Rejection`."""


def is_named_by_config(config: SourceConfig, setting: str) -> bool:
    """Whether the config names this field itself, rather than by default."""
    return getattr(config, setting) not in (None, getattr(SourceConfig, setting))


def get_field(fields: Any, name: str) -> Any:
    """The value of a field; None where it is null or absent.

    Args:
        fields: An object, or the JSON text of one.
        name: A name at the top, or a path such as `meta.set.name` into objects. A name that itself
            holds a dot is found too, and goes before a path.

    Raises:
        RecordError: for a text on the way that begins as JSON does and is none.
    """
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
