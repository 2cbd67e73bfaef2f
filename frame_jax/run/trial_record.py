"""Reads and writes `curriculum.json`, the record of what a training run does and keeps."""

from dataclasses import dataclass
from pathlib import Path

from frame_jax.errors import UserError
from frame_jax.run.directory import RunDirectory, read_dataclass, write_dataclass
from frame_jax.run.markers import changed_input

FILE = "curriculum.json"


@dataclass(frozen=True)
class StageRecord:
    """A stage of a trial.

    Attributes:
        last_row: One past the position of its last row.
        last_step: Updates made when it ends, rounded up to whole steps.
    """

    name: str
    first_row: int
    last_row: int
    first_step: int
    last_step: int


@dataclass(frozen=True)
class TrialRecord:
    """What evaluation, export and report need to know of a trial.

    Attributes:
        batch_size: Rows of a global batch.
        sequence_length: Tokens that a row predicts.
        rows: Rows there are, by quadrant.
        kept_steps: Steps whose checkpoints are kept and evaluated, ascending.
        tail_steps: Steps whose checkpoints are kept for averages of weights alone, ascending.
        stages: In the order of training; with several epochs, those of each.
    """

    steps: int
    batch_size: int
    sequence_length: int
    rows: dict[str, int]
    kept_steps: tuple[int, ...]
    tail_steps: tuple[int, ...]
    stages: tuple[StageRecord, ...]

    @property
    def tokens_per_step(self) -> int:
        """Tokens that a step trains on."""
        return self.batch_size * self.sequence_length


def write_trial_record(folder: Path, record: TrialRecord) -> None:
    """Writes the record of the training run in `folder`."""
    write_dataclass(folder / FILE, record)


def load_trial_record(folder: Path) -> TrialRecord:
    """Reads the record of the training run in `folder`.

    Raises:
        UserError: if the file is damaged.
    """
    return read_dataclass(folder / FILE, TrialRecord)


def read_trial_record(directory: RunDirectory, trial: str) -> tuple[Path, TrialRecord]:
    """Finds a trained trial of a run: its folder and its record.

    Raises:
        UserError: if there is no such trial, or its inputs have been made anew since.
    """
    folder = directory.pretrain(trial)
    if not (folder / FILE).exists():
        trials = sorted(path.parent.name for path in folder.parent.glob(f"*/{FILE}"))
        there = f"there are: {', '.join(trials)}" if trials else "run the pretrain phase first"
        raise UserError(f"{directory.root} has no trained curriculum {trial!r}; {there}")
    if (changed := changed_input(directory, f"pretrain-{trial}")) is not None:
        raise UserError(
            f"{folder} was trained before {changed} was made anew: its rows, and perhaps its "
            f"tokenizer, are not those of {directory.root} any more. Train it again "
            f"(--redo pretrain-{trial})"
        )
    return folder, load_trial_record(folder)


def choose_checkpoint_step(record: TrialRecord, step: int | None, stage: str | None) -> int:
    """Returns the step of the checkpoint that is asked for, by default the last.

    `stage` is one whose end is asked for, of several epochs the last.

    Raises:
        UserError: naming the stages there are.
    """
    if stage is not None:
        ends = {item.name: item.last_step for item in record.stages}
        if stage not in ends:
            raise UserError(f"there is no stage {stage!r}; there are: {', '.join(ends)}")
        return ends[stage]
    return record.steps if step is None else step


def averaged_steps(record: TrialRecord, last: int) -> list[int]:
    """Returns the steps of the last `last` checkpoints kept for averages, ascending.

    Raises:
        UserError: if fewer were kept.
    """
    kept = record.tail_steps or tuple(step for step in record.kept_steps if step > 0)
    if last > len(kept):
        raise UserError(
            f"an average of the last {last} checkpoints needs as many, and {len(kept)} were kept: "
            "ask for fewer, or train with pretrain.training.tail_checkpoints"
        )
    return sorted(kept)[-last:]
