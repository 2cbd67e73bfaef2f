"""A run in, whether its arms were trained on the rows that they should have been out.

The trainer keeps a digest of the rows it has read (`curriculum/digest.py`). Here the same is made
anew from the rows on disk, which are read once for all arms, and, where an arm has a manifest, from
that. Where two of the three differ, the steps are named; where the manifest and the disk differ,
the rows are.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.checkpoints import saved_orders
from frame_jax.config.file import load
from frame_jax.config.paths import user_path
from frame_jax.config.run import RunConfig
from frame_jax.curriculum import digest
from frame_jax.curriculum.digest import Consumed
from frame_jax.errors import USAGE_ERROR, UserError
from frame_jax.export.order.manifest import Unit, digests_of, header, read_rows, units_of
from frame_jax.export.order.plan import Plan, make_plan
from frame_jax.parallel import processes
from frame_jax.records import TokenReader
from frame_jax.run import progress
from frame_jax.run.arm import read_plan
from frame_jax.run.directory import RunDirectory, read_json
from frame_jax.run.ending import refusal
from frame_jax.run.faults import is_fault

NAMED = 20  # rows that are named of each kind


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


def intervals(arm: Arm) -> list[tuple[int, int, int]]:
    """Steps [first, stop) between two digests of the trainer, and the digest of their rows.

    A place with two digests that differ is among the arm's problems.
    """
    found = []
    for begin in sorted({consumed.first_step for _, consumed in arm.records}):
        values = {begin: 0}
        for done, consumed in arm.records:
            if consumed.first_step != begin:
                continue
            if values.setdefault(done, consumed.value) != consumed.value:
                arm.problems.append(f"metrics and checkpoint differ after {done:,} steps")
        for (first, before), (stop, after) in itertools.pairwise(sorted(values.items())):
            found.append((first, stop, (after - before) % digest.MODULUS))
    return found


def joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans of steps with those that touch made one."""
    result: list[tuple[int, int]] = []
    for first, stop in sorted(spans):
        if result and first <= result[-1][1]:
            first, stop = result[-1][0], max(stop, result.pop()[1])
        result.append((first, stop))
    return result


def differing(sums: np.ndarray, found: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """The spans whose digest is not that of the trainer."""
    before = np.concatenate([np.zeros((1, digest.BYTES), np.uint64), np.cumsum(sums, axis=0)])
    return joined(
        [
            (first, stop)
            for first, stop, value in found
            if digest.number(before[stop] - before[first]) != value
        ]
    )


def compare(directory: RunDirectory, arm: Arm, trained: int) -> str:
    """Fills the problems of an arm whose sums are there; returns what has been verified."""
    found = intervals(arm)
    if arm.listed is None:
        for first, stop in differing(arm.disk, found):
            arm.problems.append(
                f"{steps(first, stop)}: trained on other rows than there are on disk, or in "
                "another order; a manifest from before the change would name them"
            )
    else:
        for first, stop in differing(arm.listed, found):
            arm.problems.append(
                f"{steps(first, stop)}: trained on other rows than the manifest lists"
            )
        changed = np.flatnonzero((arm.disk != arm.listed).any(1))
        for first, stop in joined([(int(step), int(step) + 1) for step in changed]):
            arm.problems.append(f"{steps(first, stop)}: the rows on disk are not the manifest's")
        arm.problems += changed_rows(directory, arm, changed)
    if not found:
        arm.problems.append("its trainer has left no digest: it was of an earlier release")
    known = joined([(first, stop) for first, stop, _ in found])
    unknown = [
        (a, b)
        for (_, a), (b, _) in itertools.pairwise([(0, 0), *known, (trained, trained)])
        if a < b
    ]
    said = [f"{', '.join(steps(*span) for span in known) or 'no step'} of {trained:,} compared"]
    said += [f"{steps(*span)}: no digest, trained by an earlier release" for span in unknown]
    said.append("no manifest" if arm.manifest is None else f"manifest {arm.manifest}")
    if (bad := arm.folder / "bad_steps.jsonl").exists():
        count = len(bad.read_text("utf-8").splitlines())
        said.append(f"{count:,} steps read and not applied")
    return "; ".join(said)


def steps(first: int, stop: int) -> str:
    """Steps [first, stop) in words."""
    return f"step {first:,}" if stop - first == 1 else f"steps {first:,} to {stop - 1:,}"


def changed_rows(directory: RunDirectory, arm: Arm, changed: np.ndarray) -> list[str]:
    """The first rows, of those that `changed` steps read, that are not what the manifest says."""
    units = units_of(directory, arm.plan.schedule)
    named: list[str] = []
    if len(changed) == 0:
        return named
    for part in parts_of(arm, int(changed[0]), int(changed[-1]) + 1):
        assert arm.manifest is not None
        columns = ["step", "quadrant", "quadrant_row", "digest"]
        table = pq.read_table(arm.manifest / part["file"], columns=columns)
        chosen = np.isin(table["step"].to_numpy(), changed)
        for line in table.filter(pa.array(chosen)).to_pylist():
            row = line["quadrant_row"]
            (unit,) = (
                unit
                for unit in units
                if unit.name == line["quadrant"] and unit.first <= row < unit.first + unit.rows
            )
            with contextlib.closing(TokenReader(unit.path)) as reader:
                ids = read_row(reader, row - unit.first)
            own = b"" if ids is None else digest.of_rows(ids[None])[0].tobytes()
            if own != line["digest"]:
                named.append(
                    f"{where(unit, row - unit.first)}, read at step {line['step']:,}, has changed "
                    "since the manifest was written"
                )
            if len(named) == NAMED:
                return [*named, "and perhaps others"]
    return named


def verify(directory: RunDirectory, curriculum: str | None, manifest: Path | None) -> bool:
    """Prints what is found of every trained arm; returns whether all is well.

    Raises:
        UserError: if there is nothing to verify, or a manifest is another order's.
    """
    if not directory.config.exists():
        raise UserError(f"{directory.root} is no run directory: it has no config.yaml")
    config = load(directory.config)
    trained = [
        t.name for t in config.trials if (directory.pretrain(t.name) / "metrics.jsonl").exists()
    ]
    names = trained if curriculum is None else [config.trial(curriculum).name]
    if not names:
        raise UserError(f"{directory.root} has no trained curriculum: run the pretrain phase first")
    found = []
    for name in names:
        own = directory.manifest(name) if manifest is None else manifest
        there = (own / "manifest.json").exists()
        if manifest is not None and not there:
            raise UserError(f"{manifest} holds no whole manifest: export it with --to manifest")
        found.append(read_arm(config, directory, name, own if there else None))
    arms = [arm for arm, _ in found]
    damaged = read_disk(directory, arms)
    for line in damaged[:NAMED]:
        print(line)
    for arm, count in found:
        if arm.manifest is not None:
            read_manifest(arm)
        said = compare(directory, arm, count)
        print(f"{arm.name}: {'verified' if not arm.problems else 'NOT VERIFIED'}: {said}")
        for problem in arm.problems:
            print(f"  {problem}")
    return not damaged and not any(arm.problems for arm in arms)


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    options = argparse.ArgumentParser(
        prog="python -m frame_jax.verify_order",
        description="Compare what was trained on with the rows on disk and with a manifest.",
    )
    options.add_argument("run", help="run directory, with a trained curriculum")
    options.add_argument("--curriculum", help="which (default: all that were trained)")
    options.add_argument(
        "--manifest",
        help="folder that export_order --to manifest wrote for it (default: RUN/manifest/..., if "
        "it is there); needs --curriculum",
    )
    return options


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 where all is well, 2 otherwise and for bad input."""
    options = parser().parse_args(arguments)
    processes.leave_accelerators()
    try:
        if options.manifest is not None and options.curriculum is None:
            raise UserError("--manifest is of one curriculum: say which with --curriculum")
        manifest = None if options.manifest is None else user_path(options.manifest)
        well = verify(RunDirectory(options.run), options.curriculum, manifest)
    except Exception as error:
        return refusal(error)
    return 0 if well else USAGE_ERROR
