"""What a trial was trained on, by three witnesses: the trainer, the rows on disk, a manifest.

The trainer keeps a digest of the rows it has read (`curriculum/digest.py`). The same is made anew
from the rows on disk, which are read once for all trials, and from a manifest, where a trial has
one.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from frame_jax.checkpoints import saved_consumed_rows
from frame_jax.config.run import RunConfig
from frame_jax.curriculum import digest
from frame_jax.errors import UserError
from frame_jax.export.order.manifest import manifest_header
from frame_jax.export.order.manifest_lines import digests_of
from frame_jax.export.order.trial_order import (
    TrialOrder,
    list_row_files,
    make_trial_order,
    read_rows,
)
from frame_jax.run import progress
from frame_jax.run.directory import RunDirectory, file_sha256, read_json
from frame_jax.run.trial_record import read_trial_record
from frame_jax.training.metrics import parse_record


@dataclass
class VerifiedTrial:
    """A trained trial and what verification finds about it.

    Attributes:
        records: Steps done and the digest of what was read until then, as the trainer left them.
        disk: uint64 [steps, 16]: sums by byte of the digests of each step's rows, from the disk.
        manifest: The folder of its manifest, or None.
        listed: As `disk`, from the manifest.
    """

    name: str
    trial_order: TrialOrder
    batch_size: int
    folder: Path
    records: list[tuple[int, int]]
    disk: np.ndarray
    manifest: Path | None = None
    listed: np.ndarray | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps that it was trained."""
        return len(self.disk)


def read_metrics(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Reads the whole lines of metrics.jsonl, each with the steps done after it."""
    text = path.read_text("utf-8", errors="replace") if path.exists() else ""
    records = [parse_record(line, path) for line in text.split("\n")[:-1]]
    return [(int(record["step"]) + 1, record) for record in records]


def read_verified_trial(
    config: RunConfig, directory: RunDirectory, name: str, manifest: Path | None
) -> VerifiedTrial:
    """Reads a trial's digests."""
    folder, _ = read_trial_record(directory, name)
    lines = read_metrics(folder / "metrics.jsonl")
    steps = max((done for done, _ in lines), default=0)
    saved = saved_consumed_rows(folder / "checkpoints")
    lines += [(done, record) for done, record in saved.items() if 0 < done <= steps]
    records = [(done, digest.read_consumed_rows(record)) for done, record in lines]
    trial_order = make_trial_order(config, directory, name)
    if manifest is not None:
        found = read_json(manifest / "manifest.json")
        expected = manifest_header(config, directory, trial_order)
        expected["part_rows"] = found.get("part_rows")
        if {key: found.get(key) for key in expected} != expected:
            raise UserError(
                f"{manifest} is not the manifest of {name} in {directory.root}: its order or its "
                "rows are others, as after a phase was repeated. Remove it to verify without one; "
                f"then export_order RUN --trial {name} --to manifest lists the rows of now"
            )
    batch_size = config.pretrain.training.batch_size
    disk = np.zeros((steps, digest.BYTES), np.uint64)
    return VerifiedTrial(name, trial_order, batch_size, folder, records, disk, manifest)


def read_row_digests_from_disk(directory: RunDirectory, trials: list[VerifiedTrial]) -> None:
    """Adds up the digests of the rows on disk for all trials.

    Raises:
        UserError: if a file of rows is damaged or cannot be read.
    """
    row_files = list_row_files(directory, trials[0].trial_order.schedule)
    total = sum(row_file.rows for row_file in row_files)
    with progress.progress_bar("rows", total, "rows") as update:
        for row_file in row_files:
            indices_by_trial = []  # int64 [epochs, rows] each, -1 for not at all
            for trial in trials:
                rows = row_file.first + np.arange(row_file.rows)
                indices = np.stack(
                    [
                        trial.trial_order.selection.inverse(row_file.quadrant, rows, epoch)
                        for epoch in range(trial.trial_order.schedule.epochs)
                    ]
                )
                trained = indices < trial.steps * trial.batch_size
                indices_by_trial.append(np.where(trained, indices, -1))
            if not any((indices >= 0).any() for indices in indices_by_trial):
                continue
            for first, rows in read_rows(row_file):
                digests = digest.row_digests(rows)
                for trial, indices in zip(trials, indices_by_trial, strict=True):
                    for line in indices[:, first : first + len(rows)]:
                        used = line >= 0
                        each = digest.ordered_row_digests(line[used], digests[used])
                        np.add.at(trial.disk, line[used] // trial.batch_size, each)
                update(len(rows), row_file.path.stem)


def read_row_digests_from_manifest(trial: VerifiedTrial) -> None:
    """Adds up the digests of a trial's manifest; a damaged part is one of its problems."""
    assert trial.manifest is not None
    listed = np.zeros_like(trial.disk)
    for part in manifest_parts(trial, 0, trial.steps):
        path = trial.manifest / part["file"]
        if not path.exists() or file_sha256(path) != part["sha256"]:
            trial.problems.append(
                f"{path} is not what was written: remove it and its .json, and export the manifest "
                "again"
            )
            continue
        table = pq.read_table(path, columns=["row", "digest"])
        rows, digests = table["row"].to_numpy(), digests_of(table["digest"])
        read = rows < trial.steps * trial.batch_size
        each = digest.ordered_row_digests(rows[read], digests[read])
        np.add.at(listed, rows[read] // trial.batch_size, each)
    trial.listed = None if trial.problems else listed


def manifest_parts(trial: VerifiedTrial, first: int, stop: int) -> list[dict[str, Any]]:
    """Lists the parts of a trial's manifest with rows of steps [first, stop)."""
    assert trial.manifest is not None
    lo, hi = first * trial.batch_size, stop * trial.batch_size
    parts = read_json(trial.manifest / "manifest.json")["parts"]
    return [p for p in parts if p["first_row"] < hi and p["first_row"] + p["rows"] > lo]
