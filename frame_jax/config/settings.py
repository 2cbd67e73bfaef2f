"""A config value in, its settings by dotted key out."""

from __future__ import annotations

import dataclasses
from typing import Any

from frame_jax.config.run import RunConfig


def flatten_settings(value: Any, key: str = "", *, with_runtime: bool = False) -> dict[str, Any]:
    """The leaves under a config value as `{dotted key: plain value}`.

    Left out are runtime fields.

    >>> settings_of(AxesConfig(), "partition.axes")
    {'partition.axes.ppl': 2, 'partition.axes.pd': 2}
    """
    if dataclasses.is_dataclass(value):
        leaves: dict[str, Any] = {}
        for f in dataclasses.fields(value):
            if with_runtime or not f.metadata.get("runtime"):
                name = f"{key}.{f.name}" if key else f.name
                leaves |= flatten_settings(getattr(value, f.name), name, with_runtime=with_runtime)
        return leaves
    if isinstance(value, dict):
        return {
            k: v
            for name, item in value.items()
            for k, v in flatten_settings(item, f"{key}.{name}", with_runtime=with_runtime).items()
        }
    if isinstance(value, list | tuple) and any(dataclasses.is_dataclass(item) for item in value):
        return {
            k: v
            for index, item in enumerate(value)
            for k, v in flatten_settings(item, f"{key}[{index}]", with_runtime=with_runtime).items()
        }
    return {key: value}


def setting_at(config: RunConfig, key: str) -> Any:
    """The value at a dotted key, e.g. `curricula.frame` or `partition.rows`."""
    value: Any = config
    for name in key.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


def replace_setting(value: Any, key: str, leaf: Any) -> Any:
    """A copy of a config value of dataclasses with `leaf` at a dotted key."""
    name, _, rest = key.partition(".")
    inner = replace_setting(getattr(value, name), rest, leaf) if rest else leaf
    return dataclasses.replace(value, **{name: inner})
