"""The two phases that train: reference models on the reference split, trials on the quadrants."""

import dataclasses
from pathlib import Path
from typing import Any

from frame_jax.config.run import RunConfig, Trial
from frame_jax.config.training import TrainingConfig
from frame_jax.curriculum.selection import SelectionMap, trial_selection
from frame_jax.curriculum.stages import shuffled_schedule
from frame_jax.models.transformer import Decoder
from frame_jax.records import record_counts
from frame_jax.run.directory import RunDirectory, list_parts
from frame_jax.run.markers import read_fingerprint
from frame_jax.run.program_exit import run_on_all_processes
from frame_jax.run.special_tokens import read_special_tokens
from frame_jax.training.initial import target_decoder
from frame_jax.training.initial_digest import write_record
from frame_jax.training.metrics import tracker_opener
from frame_jax.training.trainer import train
from frame_jax.training.training_job import TrainingJob

VOCAB_MULTIPLE = 128  # the embedding is padded to this, so that it splits over devices


def train_reference(
    config: RunConfig, directory: RunDirectory, name: str, replica: str | None = None
) -> dict[str, Any]:
    """Trains the reference model `name` (weak or strong) on the reference split, shuffled.

    What it is at half of its training is kept for `scoring.reliability`. `replica` is the name of
    one more that is trained under the next seed.
    """
    reference, rows = getattr(config.reference, name), config.reference.rows
    parts = {"reference": list_parts(directory.reference("rows") / "reference", ".arrayrecord")}
    training = reference.training
    schedule = shuffled_schedule(count_rows(parts), training.batch_size, training.steps)
    job = make_job(
        config,
        directory,
        phase_step=f"reference-{replica or name}",
        decoder=Decoder(reference.model, vocab_rows(directory)),
        training=training,
        selection=SelectionMap(schedule, config.seed + (replica is not None)),
        parts=parts,
        sequence_length=rows.sequence_length,
    )
    half = (job.steps // 2,) if config.scoring.reliability > 0 else ()
    return train(dataclasses.replace(job, further_steps=half))


def pretrain(config: RunConfig, directory: RunDirectory, name: str) -> dict[str, Any]:
    """Trains the target model in the order of the trial `name`: a curriculum under a seed.

    Arms of a seed differ in the order of the rows and, where a curriculum has one of its own, the
    learning rate: initial weights and the rows are the same.
    """
    trial = config.trial(name)
    step = f"pretrain-{name}"
    run_on_all_processes(lambda: write_record(config, directory, step))
    selection, parts = trial_order(config, directory, trial)
    job = make_job(
        config,
        directory,
        phase_step=step,
        decoder=target_decoder(config, vocab_rows(directory)),
        training=config.training_of_arm(trial.arm),
        selection=selection,
        parts=parts,
        sequence_length=config.partition.rows.sequence_length,
    )
    return train(dataclasses.replace(job, initial=config.pretrain.initial))


def trial_order(
    config: RunConfig, directory: RunDirectory, trial: Trial
) -> tuple[SelectionMap, dict[str, list[Path]]]:
    """The order of rows of a trial, and the files of rows by quadrant."""
    parts = {
        quadrant: list_parts(directory.quadrants / quadrant, ".arrayrecord")
        for quadrant in config.partition.axes.quadrants
    }
    return trial_selection(config, trial, count_rows(parts)), parts


def make_job(
    config: RunConfig,
    directory: RunDirectory,
    *,
    phase_step: str,
    decoder: Decoder,
    training: TrainingConfig,
    selection: SelectionMap,
    parts: dict[str, list[Path]],
    sequence_length: int,
) -> TrainingJob:
    """Makes the job of a phase step that trains.

    `phase_step` is such as `reference-weak`, whose folder is RUN/reference/weak, `parts` are the
    files of rows by quadrant; `decoder` has the model's shape.
    """
    folder = directory.root.joinpath(*phase_step.split("-", 1))
    return TrainingJob(
        name=phase_step.replace("-", " "),
        folder=folder,
        decoder=dataclasses.replace(
            decoder, compute_dtype=training.compute_dtype, remat=training.remat
        ),
        training=training,
        parallel=config.parallel,
        special_tokens=read_special_tokens(directory),
        selection=selection,
        parts=parts,
        sequence_length=sequence_length,
        fingerprint=f"{read_fingerprint(directory, phase_step)}-{selection.schedule.fingerprint}",
        profile=config.profile,
        make_tracker=tracker_opener(config, phase_step, folder),
    )


def count_rows(parts: dict[str, list[Path]]) -> dict[str, int]:
    """The number of rows in the files of each quadrant."""
    return {quadrant: int(record_counts(paths).sum()) for quadrant, paths in parts.items()}


def vocab_rows(directory: RunDirectory) -> int:
    """Rows of the embedding of a model that is made for the run's tokenizer."""
    return padded_vocab_size(read_special_tokens(directory).vocab_size)


def padded_vocab_size(vocab_size: int) -> int:
    """Rows of the embedding of a model for a vocabulary of this size."""
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
