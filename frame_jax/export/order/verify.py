"""A run in, whether its arms were trained on the rows that they should have been out.

Where two of an arm's three witnesses (`trained_rows`) differ, the steps are named; where the
manifest and the disk differ, the rows are.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.config.file import load
from frame_jax.config.paths import user_path
from frame_jax.curriculum import digest
from frame_jax.errors import USAGE_ERROR, UserError
from frame_jax.export.order.quadrant_rows import units_of
from frame_jax.export.order.trained_rows import (
    Arm,
    parts_of,
    read_arm,
    read_disk,
    read_manifest,
    read_row,
    where,
)
from frame_jax.parallel import processes
from frame_jax.records import TokenReader
from frame_jax.run.directory import RunDirectory
from frame_jax.run.ending import refusal

NAMED = 20  # rows that are named of each kind


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
