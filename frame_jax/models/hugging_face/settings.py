"""Reads the settings of a Hugging Face config.json, and refuses those that cannot be computed.

A model that is nearly right gives fluent, wrong numbers, so every setting that changes what is
computed is either understood or refused by name.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

from frame_jax.config.models import RopeScalingConfig
from frame_jax.errors import UserError


class HFSettings:
    """The settings of a config.json. A key that is null counts as absent."""

    def __init__(self, values: dict[str, Any], path: Path):
        self.values, self.path = values, path

    def error(self, problem: str) -> UserError:
        """The error to raise for a problem with this file."""
        return UserError(f"{self.path}: {problem}")

    def get(self, key: str, kind: type, name: str, default: Any = None) -> Any:
        """The value of a key, which must be of type `kind`, by `name` in messages."""
        value = self.values.get(key)
        if value is None:
            return default
        if type(value) is not kind:
            raise self.error(f"{key} is {value!r}, must be {name}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """A key that is true or false."""
        return bool(self.get(key, bool, "true or false", default))

    def list_of(self, key: str) -> list[Any]:
        """A key that is a list; absent, an empty one."""
        return list(self.get(key, list, "a list", ()))

    def optional(self, key: str) -> int | None:
        """A key that is a whole number; absent, None."""
        return self.get(key, int, "a whole number")

    def require(self, *keys: str) -> None:
        """Refuses a file without all of these keys, naming those that are absent."""
        absent = [key for key in keys if self.values.get(key) is None]
        if absent:
            raise UserError(f"{self.path} has no {', '.join(absent)}")

    def size(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A key that is a whole number of at least `least`."""
        value = first_given(self.values.get(key), default)
        if type(value) is not int or value < least:
            what = "a positive whole number" if least else "a whole number"
            raise self.error(f"{key} is {value!r}, must be {what}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A key that is a positive number."""
        return self.positive(first_given(self.values.get(key), default), key)

    def positive(self, value: Any, key: str) -> float:
        """`value`, which was found under `key` and must be a positive number."""
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise self.error(f"{key} is {value!r}, must be a positive number")
        return float(value)

    def require_value(self, **computed: Any) -> None:
        """Refuses other values of these keys; absent, they have the one that is computed."""
        for key, one in computed.items():
            value = self.values.get(key)
            if value is not None and value != one:
                known = f", only {one!r}" if one else ""
                raise self.error(f"{key} {value!r} is not supported{known}")

    def rope(self) -> tuple[str, dict[str, Any]]:
        """The key of the rotary settings, in either of two spellings, and the settings."""
        key = "rope_parameters" if self.values.get("rope_parameters") else "rope_scaling"
        rope = self.values.get(key) or {}
        if not isinstance(rope, dict):
            raise self.error(f"{key} is {rope!r}, must be an object")
        if any(isinstance(value, dict) for value in rope.values()):
            raise self.error(f"{key} that differ between layers are not supported")
        return key, rope

    def partial_rotary_factor(
        self, default: float = 1.0, spelling: str = "partial_rotary_factor"
    ) -> Any:
        """The share of a head that is rotated, under its newer or its older key."""
        _, rope = self.rope()
        return first_given(rope.get("partial_rotary_factor"), self.values.get(spelling), default)

    def read_rope(
        self, spelling: str = "rope_theta", default: float = 10_000.0
    ) -> tuple[float, RopeScalingConfig | None]:
        """The base of the rotary frequencies and their stretch."""
        key, rope = self.rope()
        theta = first_given(rope.get("rope_theta"), self.values.get(spelling), default)
        theta = self.positive(theta, "rope_theta")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "default":
            return theta, None
        if kind != "llama3":
            raise self.error(f"{key} of type {kind!r} is not supported; 'default' and 'llama3' are")
        names = [field.name for field in dataclasses.fields(RopeScalingConfig)]
        found: Any = {name: self.positive(rope.get(name), f"{key}.{name}") for name in names}
        found["original_max_position_embeddings"] = int(found["original_max_position_embeddings"])
        return theta, RopeScalingConfig(**found)


def first_given(*values: Any) -> Any:
    """The first of these that is not None."""
    return next((value for value in values if value is not None), None)
