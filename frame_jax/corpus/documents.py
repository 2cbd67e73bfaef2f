"""What a source yields for each record: a `Document`, or a `Rejection` with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.fields import RecordError, get_id, get_text


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

    Args:
        fields: Field name to value; text may be bytes of UTF-8.
        config: Names of the fields, and what stands in for a field that is null or absent.
        default_id: The id of a record that carries none.
        default_source: The source of a record that carries none.
        file: Where the record is.
        line: Its line or number there, from 1.
    """
    try:
        text = get_text(fields, config.text_field)
        if text is None:
            raise RecordError(f"no text: the field {config.text_field!r} is null or absent")
        if not text.strip():
            raise RecordError("the text is empty")
        domain = get_text(fields, config.domain_field)
        language = get_text(fields, config.language_field)
        looked_for = {
            "domain_field": config.domain_field is not None and domain is None,
            "language_field": config.language_field is not None and language is None,
        }
        return Document(
            id=get_id(fields, config) or default_id,
            text=text,
            source=get_text(fields, config.source_field) or default_source,
            domain=domain or config.domain,
            language=language or config.language,
            file=file,
            line=line,
            absent=tuple(setting for setting, absent in looked_for.items() if absent),
        )
    except RecordError as error:
        return Rejection(file, line, str(error))
