"""A run and a trial's name in; its folder, its plan and the checkpoint that is asked for out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frame_jax.errors import UserError
from frame_jax.run.directory import RunDirectory, read_json
from frame_jax.run.stale_steps import changed_input


def read_trial_record(directory: RunDirectory, trial: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a trained trial, and its curriculum.json.

    Raises:
        UserError: if there is no such trial, or what it was made from is there no more.
    """
    folder = directory.pretrain(trial)
    if not (folder / "curriculum.json").exists():
        trials = sorted(path.parent.name for path in folder.parent.glob("*/curriculum.json"))
        there = f"there are: {', '.join(trials)}" if trials else "run the pretrain phase first"
        raise UserError(f"{directory.root} has no trained curriculum {trial!r}; {there}")
    if (changed := changed_input(directory, f"pretrain-{trial}")) is not None:
        raise UserError(
            f"{folder} was trained before {changed} was made anew: its rows, and perhaps its "
            f"tokenizer, are not those of {directory.root} any more. Train it again "
            f"(--redo pretrain-{trial})"
        )
    return folder, read_json(folder / "curriculum.json")


def choose_checkpoint_step(
    trial_record: dict[str, Any], saved: list[int], step: int | None, stage: str | None
) -> int:
    """The checkpoint that is asked for.

    Raises:
        UserError: naming the stages or the steps there are.
    """
    if stage is not None:
        ends = {item["name"]: item["last_step"] for item in trial_record["stages"]}
        if stage not in ends:
            raise UserError(f"there is no stage {stage!r}; there are: {', '.join(ends)}")
        step = ends[stage]
    elif step is None:
        step = trial_record["steps"]
    if step not in saved:
        raise UserError(
            f"there is no checkpoint of step {step}; there are: "
            f"{', '.join(map(str, saved)) or 'none'} (--step)"
        )
    return step


def averaged_steps(trial_record: dict[str, Any], last: int) -> list[int]:
    """The checkpoints whose mean is the average of the last `last`, ascending.

    Args:
        trial_record: The trial's curriculum.json.
        last: How many.

    Raises:
        UserError: if fewer were kept.
    """
    kept = trial_record["tail_steps"] or [step for step in trial_record["kept_steps"] if step > 0]
    if last > len(kept):
        raise UserError(
            f"an average of the last {last} checkpoints needs as many, and {len(kept)} were kept: "
            "ask for fewer, or train with pretrain.training.tail_checkpoints"
        )
    return sorted(kept)[-last:]
