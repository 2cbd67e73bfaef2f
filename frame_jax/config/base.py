"""What every part of the config tree is made with."""

import dataclasses
import operator
from dataclasses import field
from typing import Any

from frame_jax.errors import UserError

BOUNDS = {
    "least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "most": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}


def number(default: Any, **bounds: float) -> Any:
    """A dataclass field with bounds for `check_bounds`: `least`, `above`, `most`, `below`."""
    return field(default=default, metadata={"bounds": bounds})


def runtime(default: Any, **bounds: float) -> Any:
    """A dataclass field that belongs to no fingerprint; its bounds are as in `number`."""
    return field(default=default, metadata={"bounds": bounds, "runtime": True})


def later(default: Any, **bounds: float) -> Any:
    """A dataclass field that a later release added: its default belongs to no fingerprint, so that
    finished runs stay current; its bounds are as in `number`."""
    return field(default=default, metadata={"bounds": bounds, "later": True})


def check_bounds(settings: Any, where: str) -> None:
    """Refuses values outside of the bounds of a dataclass's fields; None is inside of any.

    Raises:
        UserError: naming the key, which begins with `where`, and its bounds.
    """
    for f in dataclasses.fields(settings):
        value, bounds = getattr(settings, f.name), f.metadata.get("bounds", {})
        if value is not None and not all(BOUNDS[b][0](value, x) for b, x in bounds.items()):
            words = " and ".join(f"{BOUNDS[b][1]} {x:g}" for b, x in bounds.items())
            words = words.replace("above 0", "positive").replace("below inf", "finite")
            raise UserError(f"{where}{f.name} must be {words}, not {value}")


def require(condition: bool, message: str) -> None:
    """Raises UserError with `message` unless `condition` holds."""
    if not condition:
        raise UserError(message)
