"""Settings of a config by dotted key."""

import dataclasses
import json
from typing import Any

from frame_jax.config.run import RunConfig
from frame_jax.errors import without_secrets


def flatten_settings(value: Any, key: str = "") -> dict[str, Any]:
    """Flattens a config value to `{dotted key: plain value}`.

    Left out are runtime fields, fields made with `later` at their defaults, and what is secret in
    web addresses, and another every day.

    >>> from frame_jax.config.quadrants import AxesConfig
    >>> flatten_settings(AxesConfig(), "partition.axes")
    {'partition.axes.ppl': 2, 'partition.axes.pd': 2}
    """
    if dataclasses.is_dataclass(value):
        parts = {
            f"{key}.{f.name}".lstrip("."): getattr(value, f.name)
            for f in dataclasses.fields(value)
            if not f.metadata.get("runtime")
            and not (f.metadata.get("later") and getattr(value, f.name) == f.default)
        }
    elif isinstance(value, dict):
        parts = {f"{key}.{name}": item for name, item in value.items()}
    elif isinstance(value, list | tuple) and any(map(dataclasses.is_dataclass, value)):
        parts = {f"{key}[{index}]": item for index, item in enumerate(value)}
    else:
        plain = list(value) if isinstance(value, tuple) else value  # as a marker's JSON has it
        return {key: without_secrets(plain) if isinstance(plain, str) else plain}
    leaves: dict[str, Any] = {}
    for name, item in parts.items():
        leaves |= flatten_settings(item, name)
    return leaves


def settings_to_write(config: RunConfig) -> dict[str, Any]:
    """Every setting as nested plain values, without what is secret in web addresses."""
    return json.loads(without_secrets(json.dumps(dataclasses.asdict(config))))


def settings_as_yaml(config: RunConfig) -> str:
    """The same as a config file."""
    import yaml

    return yaml.safe_dump(settings_to_write(config), sort_keys=False, allow_unicode=True)


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
