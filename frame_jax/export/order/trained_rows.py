"""What an arm was trained on, by three witnesses: the trainer, the rows on disk, a manifest.

The trainer keeps a digest of the rows it has read (`curriculum/digest.py`). The same is made anew
from the rows on disk, which are read once for all arms, and from a manifest, where an arm has one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from frame_jax.checkpoints import saved_orders
from frame_jax.config.run import RunConfig
from frame_jax.curriculum import digest
from frame_jax.curriculum.digest import Consumed
from frame_jax.errors import UserError
from frame_jax.export.order.manifest import header
from frame_jax.export.order.manifest_lines import digests_of
from frame_jax.export.order.plan import Plan, make_plan
from frame_jax.export.order.quadrant_rows import Unit, read_rows, units_of
from frame_jax.records import TokenReader
from frame_jax.run import progress
from frame_jax.run.arm import read_plan
from frame_jax.run.directory import RunDirectory, read_json
from frame_jax.run.faults import is_fault


@dataclass
class Arm:
    """A trained arm and what is found out of it.

    Attributes:
        name: Its name.
        plan: Its order.
        batch_rows: Rows of a step.
        folder: Its folder.
        records: Steps done and what was read until then: all digests that the trainer has left.
        disk: uint64 [steps, 16]: sums by byte of the digests of each step's rows, from the disk.
        manifest: The folder of its manifest, or None.
        listed: As `disk`, from the manifest.
        problems: What is wrong, in words.
    """

    name: str
    plan: Plan
    batch_rows: int
    folder: Path
    records: list[tuple[int, Consumed]]
    disk: np.ndarray
    manifest: Path | None = None
    listed: np.ndarray | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Steps up to the last digest."""
        return len(self.disk)


def read_metrics(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The lines that a trainer has written, each with the steps done after it."""
    lines: list[tuple[int, dict[str, Any]]] = []
    if not path.exists():
        return lines
    with path.open(encoding="utf-8") as file:
        for line in filter(lambda line: line.endswith("\n"), file):
            try:
                record = json.loads(line)
                lines.append((record["step"] + 1, record))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path} is damaged: this is no step: {line[:80]!r}") from error
    return lines


def read_arm(
    config: RunConfig, directory: RunDirectory, name: str, manifest: Path | None
) -> tuple[Arm, int]:
    """An arm with its digests, and how many steps it was trained."""
    folder, _ = read_plan(directory, name)
    lines = read_metrics(folder / "metrics.jsonl")
    trained = max((done for done, _ in lines), default=0)
    saved = saved_orders(folder / "checkpoints")
    lines += [(done, record) for done, record in saved.items() if done <= trained]
    records = [
        (done, consumed)
        for done, record in lines
        if (consumed := digest.read(record)) is not None and done > consumed.first_step
    ]
    steps = max((done for done, _ in records), default=0)
    plan = make_plan(config, directory, name)
    arm = Arm(
        name,
        plan,
        config.pretrain.training.batch_rows,
        folder,
        records,
        np.zeros((steps, digest.BYTES), np.uint64),
    )
    if manifest is not None:
        found = read_json(manifest / "manifest.json")
        expected = header(config, directory, plan) | {"part_rows": found.get("part_rows")}
        if {key: found.get(key) for key in expected} != expected:
            raise UserError(
                f"{manifest} is not the manifest of {name} in {directory.root}: its order or its "
                "rows are others, as after a phase was repeated. Remove it to verify without one; "
                f"then export_order RUN --curriculum {name} --to manifest lists the rows of now"
            )
        arm.manifest = manifest
    return arm, trained


def add(sums: np.ndarray, steps: np.ndarray, digests: np.ndarray) -> None:
    """Adds digests, uint8 [n, 16], to the lines `steps` of `sums`, uint64 [steps, 16]."""
    if len(steps) == 0:
        return
    order = np.argsort(steps, kind="stable")
    found, first = np.unique(steps[order], return_index=True)
    sums[found] += np.add.reduceat(digests[order].astype(np.uint64), first, axis=0)


def read_disk(directory: RunDirectory, arms: list[Arm]) -> list[str]:
    """Fills `disk` of all arms, from one reading of the rows; says which rows cannot be read."""
    damaged: list[str] = []
    units = units_of(directory, arms[0].plan.schedule)
    with progress.bar("rows", sum(unit.rows for unit in units), "rows") as update:
        for unit in units:
            places = [places_of(arm, unit) for arm in arms]
            if not any((place >= 0).any() for place in places):
                continue
            for first, rows in whole_rows(unit, damaged):
                digests = digest.of_rows(rows)
                for arm, place in zip(arms, places, strict=True):
                    for line in place[:, first : first + len(rows)]:
                        used = line >= 0
                        each = digest.of_places(line[used], digests[used])
                        add(arm.disk, line[used] // arm.batch_rows, each)
                update(len(rows), unit.path.stem)
    return damaged


def places_of(arm: Arm, unit: Unit) -> np.ndarray:
    """Where an arm was trained on the rows of a part: int64 [epochs, rows], -1 for nowhere."""
    rows = unit.first + np.arange(unit.rows)
    epochs = range(arm.plan.schedule.epochs)
    places = np.stack([arm.plan.selection.places(unit.cell, rows, epoch) for epoch in epochs])
    return np.where(places < arm.steps * arm.batch_rows, places, -1)


def whole_rows(unit: Unit, damaged: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """As `read_rows`, but rows that cannot be read are noted in `damaged`, and are zeros."""
    done, ids = 0, 0
    try:
        for first, rows in read_rows(unit):
            yield first, rows
            done, ids = first + len(rows), rows.shape[1]
        return
    except UserError as error:
        if is_fault(error.__cause__):
            raise
    with contextlib.closing(TokenReader(unit.path)) as reader:
        for record in range(done, unit.rows):
            row = read_row(reader, record)
            if row is None:
                damaged.append(f"{where(unit, record)} cannot be read")
                row = np.zeros(max(ids, 1), np.uint32)
            ids = len(row)
            yield record, row[None]


def read_row(reader: TokenReader, record: int) -> np.ndarray | None:
    """The ids of a row, uint32; None where it is damaged.

    Raises:
        UserError: where the storage fails, which says nothing of the row.
    """
    try:
        return reader.read([record])[0]
    except UserError as error:
        if is_fault(error.__cause__):
            raise
        return None


def where(unit: Unit, record: int) -> str:
    """The name of a row on disk."""
    return f"{unit.name} row {unit.first + record} ({unit.path}, record {record})"


def read_manifest(arm: Arm) -> None:
    """Fills `listed` of an arm that has a manifest, unless a part of it is not what was written:
    then it is among the arm's problems, and the manifest is no witness."""
    assert arm.manifest is not None
    listed = np.zeros_like(arm.disk)
    for part in parts_of(arm, 0, arm.steps):
        path = arm.manifest / part["file"]
        if sha256_of(path) != part["sha256"]:
            arm.problems.append(
                f"{path} is not what was written: remove it and its .json, and export the manifest "
                "again"
            )
            continue
        table = pq.read_table(path, columns=["row", "digest"])
        rows, digests = table["row"].to_numpy(), digests_of(table["digest"])
        read = rows < arm.steps * arm.batch_rows
        each = digest.of_places(rows[read], digests[read])
        add(listed, rows[read] // arm.batch_rows, each)
    arm.listed = None if arm.problems else listed


def sha256_of(path: Path) -> str | None:
    """A file's checksum in hexadecimal; None where there is no file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, hashlib.sha256).hexdigest()
    except FileNotFoundError:
        return None


def parts_of(arm: Arm, first: int, stop: int) -> list[dict[str, Any]]:
    """The parts of an arm's manifest that have rows of steps [first, stop)."""
    assert arm.manifest is not None
    lo, hi = first * arm.batch_rows, stop * arm.batch_rows
    parts = read_json(arm.manifest / "manifest.json")["parts"]
    return [p for p in parts if p["first_row"] < hi and p["first_row"] + p["rows"] > lo]
