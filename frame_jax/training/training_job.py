"""The description of a training run, and the steps whose checkpoints it keeps."""

import dataclasses
from pathlib import Path

from jax.sharding import Mesh

from frame_jax.config.parallel import ParallelConfig
from frame_jax.config.training import InitialConfig, TrainingConfig
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.curriculum.stages import DataSchedule
from frame_jax.errors import UserError
from frame_jax.models.transformer import Decoder
from frame_jax.parallel.sharding import data_parallel_size
from frame_jax.run.special_tokens import SpecialTokens
from frame_jax.run.trial_record import StageRecord, TrialRecord
from frame_jax.training.metrics import MakeTracker


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """A model to train, the rows in their order, and the settings of training.

    Attributes:
        name: Shown beside the progress bar.
        folder: Checkpoints, metrics and descriptions go here.
        selection: Which row comes when; its seed is that of the initial weights, too.
        parts: Files of rows, by quadrant.
        sequence_length: Tokens a row predicts.
        fingerprint: Identifies everything the result depends on.
        further_steps: Steps whose checkpoints are kept beside those that are evaluated.
        initial: The model that it starts from; None for random weights.
        profile: Steps to trace, `START:STOP`.
        make_tracker: Opens the tracker that follows the run, on process 0; None for none.
    """

    name: str
    folder: Path
    decoder: Decoder
    training: TrainingConfig
    parallel: ParallelConfig
    special_tokens: SpecialTokens
    selection: SelectionMap
    parts: dict[str, list[Path]]
    sequence_length: int
    fingerprint: str
    further_steps: tuple[int, ...] = ()
    initial: InitialConfig | None = None
    profile: str | None = None
    make_tracker: MakeTracker | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run; the last batch may be completed by padding."""
        return self.selection.schedule.steps(self.training.batch_size)

    @property
    def stage_starts(self) -> list[int]:
        """The first step of each stage, rising; a stage inside a step begins with it."""
        return self.selection.schedule.stage_starts(self.training.batch_size)


def kept_steps(
    schedule: DataSchedule, training: TrainingConfig, continued: bool = False
) -> list[int]:
    """The steps whose checkpoints stay: the stage ends, the last of which ends the run, and the
    milestones, which begin with the initial weights. Those of a model that is continued always
    stay."""
    steps, count = schedule.steps(training.batch_size), training.milestones
    even = {round(steps * i / count) for i in range(count + 1)} if count else set()
    even |= {0} if continued else set()
    return sorted(step for step in stage_ends(schedule, training) | even if step <= steps)


def stage_ends(schedule: DataSchedule, training: TrainingConfig) -> set[int]:
    """The number of updates at each stage end; a step that two stages share is the first one's."""
    return {-(-int(row) // training.batch_size) for row in schedule.boundaries}


def tail_steps(job: TrainingJob) -> list[int]:
    """The steps whose checkpoints are kept for averages of weights; the last ends the run."""
    count, training = job.training.tail_checkpoints, job.training
    first = job.steps * (1 - training.tail_fraction)
    between = (job.steps - first) / max(count, 1)
    return sorted({round(first + between * (i + 1)) for i in range(count)})


def check_batch(job: TrainingJob, mesh: Mesh) -> None:
    """Refuses a batch that does not divide over the mesh."""
    divisor = data_parallel_size(mesh) * job.training.gradient_accumulation_steps
    if job.training.batch_size % divisor:
        raise UserError(
            f"training.batch_size ({job.training.batch_size}) must be a multiple of slice x data x "
            f"fsdp x expert x gradient_accumulation_steps ({divisor}); change one of them"
        )


def trial_record(job: TrainingJob, kept: list[int]) -> TrialRecord:
    """Describes a job for evaluation, export and report."""
    schedule, batch = job.selection.schedule, job.training.batch_size
    return TrialRecord(
        steps=job.steps,
        batch_size=batch,
        sequence_length=job.sequence_length,
        rows=dict(zip(schedule.quadrants, schedule.available, strict=True)),
        kept_steps=tuple(kept),
        tail_steps=tuple(tail_steps(job)),
        stages=tuple(
            StageRecord(name, start, stop, start // batch, -(-stop // batch))
            for name, start, stop in schedule.run_stages
        ),
    )
