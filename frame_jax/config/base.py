"""What every part of the config tree is made with."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from typing import Any

from frame_jax.errors import UserError


def runtime(default: Any = dataclasses.MISSING, default_factory: Any = dataclasses.MISSING) -> Any:
    """A dataclass field that does not belong to any fingerprint."""
    return field(default=default, default_factory=default_factory, metadata={"runtime": True})


def require(condition: bool, message: str) -> None:
    """Raises UserError with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)
