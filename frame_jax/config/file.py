"""Reads a config file and dotted overrides into a `RunConfig`.

What a parser of YAML lets pass (keys set twice, null for any type, NaN) is refused here; what is
impossible among values, the dataclasses refuse themselves.
"""

import contextlib
import dataclasses
import difflib
import itertools
import math
import re
import typing
from pathlib import Path
from typing import Any

from frame_jax.config.base import require
from frame_jax.config.curriculum import CurriculumConfig, Preset
from frame_jax.config.paths import user_path
from frame_jax.config.run import BASELINE, RunConfig, default_curricula
from frame_jax.config.training import LRScheduleConfig
from frame_jax.errors import UserError


def make_parser(**kwargs: Any) -> Any:
    """The jsonargparse parser of a run: `--config FILE` and one dotted option for each setting."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False, **kwargs)
    parser.allow_abbrev = False  # an old or mistyped key may be the beginning of another
    parser.add_argument("--config", action="config", help="YAML file with the run's settings")
    parser.add_class_arguments(RunConfig, as_group=False)
    return parser


def parse(arguments: list[str], parser: Any = None) -> tuple[RunConfig, Any]:
    """Parses `arguments`, such as `["--config", "run.yaml", "--seed", "1"]`, to a config and the
    namespace of whatever other options `parser` has.

    Raises:
        UserError: for an unreadable file, an unknown key, a wrong type or an impossible value.
    """
    import jsonargparse

    parser = parser or make_parser()
    try:
        for path in config_files(arguments):
            refuse_repeated_keys(path)
        namespace = parser.parse_args(arguments)
        refuse_invalid_values(namespace, RunConfig)
        values = parser.instantiate(namespace)
        settings = expand_study(
            RunConfig(**{f.name: values[f.name] for f in dataclasses.fields(RunConfig)})
        )
        require(
            settings.baseline in (*settings.curricula, BASELINE),
            f"baseline: there is no curriculum {settings.baseline!r}; there are: "
            f"{', '.join(settings.curricula)}",
        )
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise UserError(explain_parser_error(str(error), arguments)) from error
    except UserError as error:  # a dataclass refused its values
        raise UserError(f"{config_origin(arguments)}: {error}") from error
    return settings, values


def refuse_invalid_values(values: Any, cls: type, key: str = "") -> None:
    """Refuses what the parser accepts: null for any type, NaN, infinity, text that is no name.

    `values` is the parser's namespace for the dataclass `cls`, whose keys begin with `key`.

    Raises:
        UserError: naming the key.
    """
    hints = typing.get_type_hints(cls)
    complete = hasattr(values, "__contains__") and all(
        f.name in values for f in dataclasses.fields(cls)
    )
    require(complete, f"{key.rstrip('.')} must be settings by name, not {values!r}")
    for f in dataclasses.fields(cls):
        name, value = f"{key}{f.name}", values[f.name]
        optional = type(None) in typing.get_args(hints[f.name])
        require(value is not None or optional, f"{name} needs a value; null is not one")
        children = {name: value}
        if isinstance(value, list):
            children = {f"{name}[{index}]": item for index, item in enumerate(value)}
        elif isinstance(value, dict):
            children = {f"{name}.{item}": child for item, child in value.items()}
        inner = mentioned_dataclasses(hints[f.name])
        for path, child in children.items():
            finite = not isinstance(child, float) or math.isfinite(child)
            require(finite, f"{path} must be a finite number, not {child}")
            odd = isinstance(child, str) and re.search("[\0\ud800-\udfff]", child)
            require(not odd, f"{path} must be UTF-8 without NUL, not {child!r}")
            if inner and not (child is None or dataclasses.is_dataclass(child)):
                refuse_invalid_values(child, inner[0], f"{path}.")


def refuse_repeated_keys(path: str) -> None:
    """Refuses a file that sets a key twice: YAML itself would let the last one win.

    Raises:
        UserError: naming key and line.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for name, _ in node.value:
                if isinstance(name, yaml.ScalarNode):
                    line = name.start_mark.line + 1
                    require(
                        name.value not in seen,
                        f"line {line}: `{name.value}` is set twice; keep one",
                    )
                    seen.add(name.value)
            return super().construct_mapping(node, deep)

    # The parser says what else is wrong with the file.
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        yaml.load(user_path(path).read_text("utf-8"), Loader)


def load(path: str | Path, *overrides: str) -> RunConfig:
    """Loads the config in a YAML file, with dotted overrides such as `--seed=1`."""
    return parse(["--config", str(path), *overrides])[0]


def explain_parser_error(message: str, arguments: list[str]) -> str:
    """Rewrites a parser's message in one line, with the nearest valid name for an unknown key."""
    message = re.sub(r"Problem with given class_path '[^']*':", "", message)
    message = " ".join(message.replace("Parser key", "key").split())
    found = re.search(r"option '([^']+)'|unrecognized arguments: --(\S+)", message, re.IGNORECASE)
    if found:
        names = {f.name for cls in dataclass_types(RunConfig) for f in dataclasses.fields(cls)}
        keys = (found.group(1) or found.group(2)).split("=")[0].split(".")
        error = next((key for key in keys if key not in names), keys[-1])
        near = difflib.get_close_matches(error, sorted(names), n=1, cutoff=0.5)
        message += f" (did you mean `{near[0]}`?)" if near else ""
    return f"{config_origin(arguments)}: {message}"


def config_origin(arguments: list[str]) -> str:
    """Names what the settings were read from, for messages."""
    files = config_files(arguments)
    return f"config {files[-1]}" if files else "command line"


def config_files(arguments: list[str]) -> list[str]:
    """Lists the files that `--config FILE` and `--config=FILE` name."""
    files = [b for a, b in itertools.pairwise(arguments) if a == "--config"]
    return files + [a.partition("=")[2] for a in arguments if a.startswith("--config=")]


def dataclass_types(cls: type) -> set[type]:
    """Collects `cls` and every dataclass that its fields mention."""
    found = {cls}
    for hint in typing.get_type_hints(cls).values():
        for inner in mentioned_dataclasses(hint):
            found |= dataclass_types(inner)
    return found


def mentioned_dataclasses(hint: Any) -> list[type]:
    """Lists the dataclasses in a type hint, such as `SourceConfig` in `list[SourceConfig]`."""
    if dataclasses.is_dataclass(hint):
        return [typing.cast(type, hint)]
    return [cls for inner in typing.get_args(hint) for cls in mentioned_dataclasses(inner)]


def expand_study(config: RunConfig) -> RunConfig:
    """Adds the arms of a config's study to its curricula.

    Where a file names a study and no curricula, the default ones are not meant.

    Raises:
        UserError: for an order or a setting that does not exist, or a name that is taken.
    """
    if config.study is None:
        return config
    given = {} if config.curricula == default_curricula() else config.curricula
    orders = {name: order_by_name(name, given) for name in config.study.orders}
    arms = dict(orders)
    for name, changes in config.study.lr_schedules.items():
        rate = changed_lr_schedule(config.pretrain.training.lr_schedule, name, changes)
        arms |= {
            f"{arm}_{name}": dataclasses.replace(curriculum, lr_schedule=rate)
            for arm, curriculum in orders.items()
        }
    for name in given.keys() & arms.keys():
        require(
            given[name] == arms[name],
            f"study: the arm {name!r} is also one of curricula, and another there: rename one",
        )
    return dataclasses.replace(config, curricula=arms | given)


def order_by_name(name: str, curricula: dict[str, CurriculumConfig]) -> CurriculumConfig:
    """The curriculum that a study calls by `name`."""
    if name in curricula:
        return curricula[name]
    presets = typing.get_args(Preset)
    near = difflib.get_close_matches(name, [*presets, *curricula], n=1, cutoff=0.5)
    require(
        name in presets,
        f"study.orders: there is no preset or curriculum {name!r}"
        + (f" (did you mean `{near[0]}`?)" if near else f"; presets are {', '.join(presets)}"),
    )
    return CurriculumConfig(preset=typing.cast(Any, name))


def changed_lr_schedule(
    base: LRScheduleConfig, name: str, changes: dict[str, Any]
) -> LRScheduleConfig:
    """Applies `changes` to `base`, their types checked like those of any setting."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(LRScheduleConfig, as_group=False)
    try:
        values = parser.instantiate(parser.parse_object(dataclasses.asdict(base) | changes))
        return LRScheduleConfig(**{f.name: values[f.name] for f in dataclasses.fields(base)})
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"study.lr_schedules.{name}: {message}") from error
