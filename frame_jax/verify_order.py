"""Verifies that each trial trained on the expected rows.

Where two of a trial's three witnesses (`verified_trial`) differ, the steps are named; where the
manifest and the disk differ, the rows are.
"""

import argparse
import contextlib
import itertools

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.config.file import load
from frame_jax.config.paths import user_path
from frame_jax.curriculum import digest
from frame_jax.errors import USAGE_ERROR, UserError
from frame_jax.export.order import verified_trial
from frame_jax.export.order.trial_order import list_row_files
from frame_jax.records import TokenReader
from frame_jax.run.directory import RunDirectory
from frame_jax.run.program_exit import run_command, run_main

NAMED = 20  # rows that are named


def digest_intervals(trial: verified_trial.VerifiedTrial) -> list[tuple[int, int, int]]:
    """Yields steps [first, stop) between two digests of the trainer, and the digest of their rows.

    A place with two digests that differ is among the trial's problems.
    """
    values = {0: 0}
    for done, consumed in trial.records:
        if values.setdefault(done, consumed) != consumed:
            trial.problems.append(f"metrics and checkpoint differ after {done:,} steps")
    return [
        (first, stop, (after - before) % digest.MODULUS)
        for (first, before), (stop, after) in itertools.pairwise(sorted(values.items()))
    ]


def join_spans(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Joins adjacent spans of steps."""
    result: list[tuple[int, int]] = []
    for first, stop in sorted(spans):
        if result and first <= result[-1][1]:
            first, stop = result[-1][0], max(stop, result.pop()[1])
        result.append((first, stop))
    return result


def compare_witnesses(directory: RunDirectory, trial: verified_trial.VerifiedTrial) -> str:
    """Compares a trial's witnesses and notes its problems; returns what has been verified."""
    found = digest_intervals(trial)
    witness, problem = trial.listed, "trained on other rows than the manifest lists"
    if witness is None:
        witness = trial.disk
        problem = (
            "trained on other rows than there are on disk, or in another order; a manifest from "
            "before the change would name them"
        )
    before = np.concatenate([np.zeros((1, digest.BYTES), np.uint64), np.cumsum(witness, axis=0)])
    wrong = [
        (first, stop)
        for first, stop, value in found
        if digest.digest_value(before[stop] - before[first]) != value
    ]
    trial.problems += [f"{format_steps(*span)}: {problem}" for span in join_spans(wrong)]
    changed = np.flatnonzero((trial.disk != witness).any(1))
    trial.problems += [
        f"{format_steps(*span)}: the rows on disk are not the manifest's"
        for span in join_spans([(int(step), int(step) + 1) for step in changed])
    ]
    trial.problems += describe_changed_rows(directory, trial, changed)
    if not found:
        trial.problems.append("its trainer has left no digest")
    compared = format_steps(0, trial.steps) if found else "no step"
    findings = [f"{compared} of {trial.steps:,} compared"]
    findings.append("no manifest" if trial.manifest is None else f"manifest {trial.manifest}")
    if (bad := trial.folder / "bad_steps.jsonl").exists():
        count = len(bad.read_text("utf-8").splitlines())
        findings.append(f"{count:,} steps read and not applied")
    return "; ".join(findings)


def format_steps(first: int, stop: int) -> str:
    """Formats steps [first, stop) for people."""
    return f"step {first:,}" if stop - first == 1 else f"steps {first:,} to {stop - 1:,}"


def describe_changed_rows(
    directory: RunDirectory, trial: verified_trial.VerifiedTrial, changed: np.ndarray
) -> list[str]:
    """Names the first rows, of those read by the steps `changed`, that differ from the manifest."""
    if len(changed) == 0:
        return []
    assert trial.manifest is not None
    row_files = list_row_files(directory, trial.trial_order.schedule)
    named: list[str] = []
    for part in verified_trial.manifest_parts(trial, int(changed[0]), int(changed[-1]) + 1):
        columns = ["step", "quadrant", "quadrant_row", "digest"]
        table = pq.read_table(trial.manifest / part["file"], columns=columns)
        chosen = np.isin(table["step"].to_numpy(), changed)
        for line in table.filter(pa.array(chosen)).to_pylist():
            (row_file,) = (
                file
                for file in row_files
                if file.quadrant_name == line["quadrant"]
                and file.first <= line["quadrant_row"] < file.first + file.rows
            )
            record = line["quadrant_row"] - row_file.first
            with contextlib.closing(TokenReader(row_file.path)) as reader:
                [ids] = reader.read([record])
            if digest.row_digests(ids[None])[0].tobytes() != line["digest"]:
                named.append(
                    f"{row_file.quadrant_name} row {line['quadrant_row']} ({row_file.path}, record "
                    f"{record}), read at step {line['step']:,}, has changed since the manifest was "
                    "written"
                )
            if len(named) == NAMED:
                return [*named, "and perhaps others"]
    return named


def verify_trials(options: argparse.Namespace) -> int:
    """Prints what is found about every trained trial; returns 0 if all is well, else 2.

    Raises:
        UserError: if there is nothing to verify, a manifest is another order's, or rows cannot be
            read.
    """
    directory, trial_name = RunDirectory(options.run), options.trial
    if options.manifest is not None and trial_name is None:
        raise UserError("--manifest is of one curriculum: say which with --trial")
    manifest = None if options.manifest is None else user_path(options.manifest)
    if not directory.config.exists():
        raise UserError(f"{directory.root} is no run directory: it has no config.yaml")
    config = load(directory.config)
    trained = [
        t.name for t in config.trials if (directory.pretrain(t.name) / "metrics.jsonl").exists()
    ]
    names = trained if trial_name is None else [config.trial(trial_name).name]
    if not names:
        raise UserError(f"{directory.root} has no trained curriculum: run the pretrain phase first")
    trials = []
    for name in names:
        own = directory.manifest(name) if manifest is None else manifest
        there = (own / "manifest.json").exists()
        if manifest is not None and not there:
            raise UserError(f"{manifest} holds no whole manifest: export it with --to manifest")
        trials.append(
            verified_trial.read_verified_trial(config, directory, name, own if there else None)
        )
    verified_trial.read_row_digests_from_disk(directory, trials)
    for trial in trials:
        if trial.manifest is not None:
            verified_trial.read_row_digests_from_manifest(trial)
        findings = compare_witnesses(directory, trial)
        print(f"{trial.name}: {'verified' if not trial.problems else 'NOT VERIFIED'}: {findings}")
        for problem in trial.problems:
            print(f"  {problem}")
    return USAGE_ERROR if any(trial.problems for trial in trials) else 0


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = argparse.ArgumentParser(
        prog="python -m frame_jax.verify_order",
        description="Compare what was trained on with the rows on disk and with a manifest.",
    )
    options.add_argument("run", help="run directory, with a trained curriculum")
    options.add_argument("--trial", help="which (default: all that were trained)")
    options.add_argument(
        "--manifest",
        help="folder that export_order --to manifest wrote for it (default: RUN/manifest/..., if "
        "it is there); needs --trial",
    )
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 if all is well, 2 otherwise and for bad
    input."""
    return run_command(parser(), verify_trials, arguments)


if __name__ == "__main__":
    run_main(main)
