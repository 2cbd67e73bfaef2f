"""Expands a study, orders crossed with learning rates, into the curricula it stands for."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from typing import Any

from frame_jax.config.base import require
from frame_jax.config.curriculum import CurriculumConfig, Preset
from frame_jax.config.run import RunConfig, default_curricula
from frame_jax.config.training import LRScheduleConfig
from frame_jax.errors import UserError


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
