"""The order of training rows that a config asks for: the one place where settings become it.

Training, exports and `--plan` all take the order from here, so that they cannot differ.
"""

from __future__ import annotations

from collections.abc import Mapping

from frame_jax.config.run import RunConfig, Trial
from frame_jax.curriculum.presets import expand_curriculum
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.curriculum.stages import DataSchedule, resolve_curriculum


def arm_schedule(config: RunConfig, arm: str, rows: Mapping[str, int]) -> DataSchedule:
    """The stages of an arm over rows that exist.

    `rows` are those of each quadrant; others than the partition's are ignored.

    Raises:
        UserError: if the rows cannot fill the stages.
    """
    axes, training = config.partition.axes, config.pretrain.training
    return resolve_curriculum(
        expand_curriculum(config.curricula[arm], axes),
        {quadrant: rows[quadrant] for quadrant in axes.quadrants},
        batch_size=training.batch_size,
        sequence_length=config.partition.rows.sequence_length,
        steps=training.steps,
    )


def trial_selection(config: RunConfig, trial: Trial, rows: Mapping[str, int]) -> SelectionMap:
    """Which row comes when in a trial: its arm's stages, drawn under its seed.

    Raises:
        UserError: if the rows cannot fill the stages.
    """
    curriculum = expand_curriculum(config.curricula[trial.arm], config.partition.axes)
    return SelectionMap(arm_schedule(config, trial.arm, rows), trial.seed, curriculum.shuffle)
