"""The two phases that train: reference models on the reference split, arms on the quadrants."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from frame_jax.config.run import RunConfig, Trial
from frame_jax.config.training import PretrainConfig, ReferenceModelConfig
from frame_jax.curriculum.presets import expand
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.curriculum.stages import resolve, shuffled
from frame_jax.models.functional import Decoder
from frame_jax.records import lengths
from frame_jax.run.directory import RunDirectory, list_parts, read_json
from frame_jax.run.markers import fingerprint_of
from frame_jax.training import trackers
from frame_jax.training.job import Job
from frame_jax.training.step import Specials
from frame_jax.training.trainer import train

VOCAB_MULTIPLE = 128  # the embedding is padded to this, so that it splits over devices


def train_reference(config: RunConfig, directory: RunDirectory, name: str) -> dict[str, Any]:
    """Trains the reference model `name` (weak or strong) on the reference split, shuffled."""
    reference, rows = getattr(config.reference, name), config.reference.rows
    parts = {"reference": list_parts(directory.reference("rows") / "reference", ".arrayrecord")}
    training = reference.training
    schedule = shuffled(count_rows(parts), training.batch_rows, training.steps)
    job = make_job(
        config,
        directory,
        unit=f"reference-{name}",
        folder=directory.reference(name),
        settings=reference,
        selection=SelectionMap(schedule, config.seed),
        parts=parts,
        sequence_length=rows.sequence_length,
    )
    return train(job)


def pretrain(config: RunConfig, directory: RunDirectory, name: str) -> dict[str, Any]:
    """Trains the target model in the order of the trial `name`: a curriculum under a seed.

    Arms of a seed differ in the order of the rows and, where a curriculum has one of its own, the
    learning rate: initial weights and the rows are the same.
    """
    trial = config.trial(name)
    selection, parts = order_of(config, directory, trial)
    job = make_job(
        config,
        directory,
        unit=f"pretrain-{name}",
        folder=directory.pretrain(name),
        settings=dataclasses.replace(config.pretrain, training=config.arm_training(trial.arm)),
        selection=selection,
        parts=parts,
        sequence_length=config.partition.rows.sequence_length,
    )
    return train(job)


def order_of(
    config: RunConfig, directory: RunDirectory, trial: Trial
) -> tuple[SelectionMap, dict[str, list[Path]]]:
    """Which row comes when in a trial, and the files of rows, by quadrant."""
    training, axes = config.arm_training(trial.arm), config.partition.axes
    curriculum = expand(config.curricula[trial.arm], axes)
    parts = {cell: list_parts(directory.quadrants / cell, ".arrayrecord") for cell in axes.cells}
    schedule = resolve(
        curriculum,
        count_rows(parts),
        batch_rows=training.batch_rows,
        sequence_length=config.partition.rows.sequence_length,
        steps=training.steps,
    )
    return SelectionMap(schedule, trial.seed, curriculum.shuffle), parts


def make_job(
    config: RunConfig,
    directory: RunDirectory,
    *,
    unit: str,
    folder: Path,
    settings: ReferenceModelConfig | PretrainConfig,
    selection: SelectionMap,
    parts: dict[str, list[Path]],
    sequence_length: int,
) -> Job:
    """What all training runs of a run directory have in common, filled in."""
    training = settings.training
    special = read_json(directory.tokenizer.with_name("special_tokens.json"))
    return Job(
        name=unit.replace("-", " "),
        folder=folder,
        decoder=Decoder(
            settings.model,
            padded_vocabulary(special["vocab_size"]),
            training.compute_dtype,
            training.remat,
        ),
        training=training,
        parallel=config.parallel,
        specials=Specials(special["bos_id"], special["eos_id"]),
        selection=selection,
        parts=parts,
        sequence_length=sequence_length,
        seed=selection.seed,
        fingerprint=f"{fingerprint_of(directory, unit)}-{selection.schedule.fingerprint}",
        profile=config.profile,
        make_tracker=trackers.maker(config, unit, folder),
    )


def count_rows(parts: dict[str, list[Path]]) -> dict[str, int]:
    """Rows in the files of each quadrant."""
    return {cell: int(lengths(paths).sum()) for cell, paths in parts.items()}


def padded_vocabulary(vocab_size: int) -> int:
    """Rows of the embedding of a model that is trained here."""
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
