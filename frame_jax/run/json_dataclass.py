"""Writes dataclasses to JSON files and reads them back."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from frame_jax.errors import UserError
from frame_jax.run.directory import read_json, write_json

T = TypeVar("T")


def write_dataclass(path: Path, value: Any) -> None:
    """Writes a dataclass instance as an indented JSON object, atomically."""
    write_json(path, dataclasses.asdict(value))


def read_dataclass(path: Path, kind: type[T]) -> T:
    """Reads an instance of the dataclass `kind` that `write_dataclass` wrote.

    Raises:
        UserError: if the file is damaged, lacks a field of `kind` that has no default, or has a
            field that `kind` does not have.
    """
    value = read_json(path)
    try:
        return from_json(kind, value)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not as this release writes it ({error}); have it made again with --redo of "
            "its phase"
        ) from error


def from_json(kind: Any, value: Any) -> Any:
    """Converts what `json.loads` gives to an annotated type.

    Args:
        kind: A dataclass, `tuple[X, ...]`, `list[X]`, `dict[str, X]`, `X | None`, or a type that
            JSON has, whose values are taken as they are.
        value: The parsed JSON.
    """
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = {name: from_json(hints[name], item) for name, item in value.items()}
        return typing.cast(Any, kind)(**fields)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else from_json(arguments[0], value)
    if origin in (list, tuple):
        return origin(from_json(arguments[0], item) for item in value)
    if origin is dict:
        return {key: from_json(arguments[1], item) for key, item in value.items()}
    return value
