"""Feeds every exported order to the trainer it is for, and compares what it yields with the order.

    check_exports.py RUN --trial frame --environments FOLDER

RUN is partitioned. Each format is exported with its data and read by the client's own code, by the
scripts in tools/clients, in an environment of its own, made here, one at a time; no accelerator is
needed. One line a client: installed version, tokens by stage against promised, the largest
deviation of a quadrant in a stage, and which tokens are left out or come twice. Clients that read
rows must yield exactly the rows that training here reads. A client that cannot be installed says
so. Without RUN, environments are made and nothing is checked. Memory grows with the run's tokens.

Exits with 1 if an installed client refuses its export, yields other rows, or deviates too far.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import duckdb
import numpy as np

from frame_jax import export_order as export
from frame_jax.config.file import load
from frame_jax.curriculum.loader import QuadrantRows
from frame_jax.errors import UserError, print_error
from frame_jax.export.order.shards import read_rows
from frame_jax.export.order.trial_order import Trainer, TrialOrder, make_trial_order
from frame_jax.records import TokenReader
from frame_jax.run.directory import RunDirectory, list_parts
from frame_jax.sql import parquet_table

SCRIPTS = Path(__file__).with_name("clients")
TORCH = ("torch==2.13.0",)
WINDOW = 12  # tokens by which a place in the corpus is known again
TOLERANCE = 0.05  # of a stage; MaxText draws whole documents
PRIME = np.uint64(0x9E3779B97F4A7C15)


@dataclasses.dataclass(frozen=True)
class Client:
    """A trainer.

    Attributes:
        package: Its name in the package index.
        shards: Kind of data that it reads here.
        install: Arguments of `pip install`, one after the other.
        yields: "rows" of the run, or "sequences" of its own.
        smooth: Whether its stages keep the curriculum's transitions.
        python: Version it needs, where this interpreter's is older and another is installed.
    """

    package: str
    shards: str
    install: tuple[tuple[str, ...], ...]
    yields: str = "sequences"
    smooth: bool = True
    python: str = "3.11"


# Whole installations would draw GPU libraries: then only what the data code imports is installed.
CLIENTS = {
    "mosaicml": Client(
        "mosaicml-streaming",
        "mds",
        (
            TORCH,
            ("--no-deps", "mosaicml-streaming"),
            ("numpy", "transformers", "catalogue", "brotli", "python-snappy", "zstd", "xxhash"),
            ("tqdm", "pillow"),
        ),
        yields="rows",
    ),
    "olmo_core": Client("ai2-olmo-core", "npy", (TORCH, ("ai2-olmo-core",)), yields="rows"),
    "megatron": Client(
        "megatron-core", "jsonl", (TORCH, ("megatron-core", "tokenizers")), smooth=False
    ),
    "levanter": Client(
        "marin-levanter", "jsonl", (("marin-levanter", "GitPython"),), python="3.12"
    ),
    "maxtext": Client(
        "maxtext",
        "arrayrecord",
        (
            ("--no-deps", "--ignore-requires-python", "maxtext"),
            ("ml_collections", "jax", "grain", "transformers", "tiktoken", "sentencepiece"),
            ("pillow", "pathwaysutils", "pyyaml", "pydantic"),
        ),
        python="3.12",
    ),
}


class NotInstalled(Exception):
    """Why an environment could not be made."""


def install(name: str, environments: Path) -> Path:
    """The Python of a client's environment, made if it is not there.

    Raises:
        NotInstalled: with the last complaint of pip.
    """
    client, folder = CLIENTS[name], environments / name
    python = folder / "bin" / "python"
    if (folder / "installed").exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([interpreter(client.python), "-m", "venv", folder], check=True)
    for packages in (("--upgrade", "pip"), *client.install):
        done = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *packages], capture_output=True, text=True
        )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise NotInstalled(errors[-1] if errors else done.stderr.strip()[-300:])
    (folder / "installed").touch()
    return python


def interpreter(version: str) -> str:
    """A Python of at least `version`: this one, or the one of that name, if there is one."""
    if sys.version_info[:2] >= tuple(map(int, version.split("."))):
        return sys.executable
    other = shutil.which(f"python{version}")
    works = other and not subprocess.run([other, "--version"], capture_output=True).returncode
    return other if other and works else sys.executable


def prepare(name: str, environments: Path) -> tuple[bool, str]:
    """Whether a client's environment is there now, and what to say of it."""
    try:
        return True, f"{name}: {install(name, environments)}"
    except NotInstalled as reason:
        return False, f"{name}: {CLIENTS[name].package} cannot be installed here: {reason}"


def check(name: str, run: RunDirectory, curriculum: str, environments: Path) -> tuple[bool, str]:
    """Whether nothing is wrong, and the client's line."""
    client = CLIENTS[name]
    installed, line = prepare(name, environments)
    if not installed:
        return True, line
    python = environments / name / "bin" / "python"
    script = f"from importlib.metadata import version; print(version({client.package!r}))"
    version = subprocess.check_output([python, "-c", script], text=True).strip()
    title = f"{name}: {client.package} {version}"
    plan = make_trial_order(load(run.config), run, curriculum)
    trainer = Trainer(load(run.config).pretrain.training.batch_size, plan.sequence_length, "", "")
    with tempfile.TemporaryDirectory() as scratch:
        out, found = Path(scratch) / "export", Path(scratch) / "found.npy"
        options = ["--to", name, "--trial", curriculum, "--shards", client.shards]
        export.write_order(export.parser().parse_args([str(run.root), *options, "--out", str(out)]))
        environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        sizes = [str(trainer.batch_size), str(trainer.sequence_length)]
        done = subprocess.run(
            [python, SCRIPTS.resolve() / f"read_{name}.py", found, *sizes],
            cwd=out,
            env=environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            return False, f"{title} refuses the export:\n{done.stderr[-2000:]}"
        yielded = np.load(found)
    if client.yields == "rows":
        good, text = compare_rows(yielded, run, plan, trainer)
    else:
        good, text = compare_tokens(yielded, run, plan, trainer, client.smooth)
    return good, f"{title} accepted; {text}"


def compare_rows(
    yielded: np.ndarray, run: RunDirectory, plan: TrialOrder, trainer: Trainer
) -> tuple[bool, str]:
    """Whether these are the rows of the run in order, and what to say of them.

    The last rows, less than a batch, may be missing.
    """
    names = plan.schedule.quadrants
    files = QuadrantRows([list_parts(run.quadrants / name, ".arrayrecord") for name in names])
    wanted = read_rows(files, plan, 0, plan.schedule.rows)
    count = min(len(wanted), len(yielded))
    equal = (yielded[:count] == wanted[:count]).all(axis=1)
    text = f"{int(equal.sum()):,} of {len(wanted):,} rows in their place, all their tokens equal"
    return bool(equal.all() and len(wanted) - count < trainer.batch_size), text


def compare_tokens(
    yielded: np.ndarray, run: RunDirectory, plan: TrialOrder, trainer: Trainer, smooth: bool
) -> tuple[bool, str]:
    """Whether these sequences follow the order, and what to say of them.

    Args:
        yielded: int [sequences, tokens], -1 where padded.
        run: Its documents are known again by their tokens.
        plan: The order.
        trainer: Whose steps they are.
        smooth: Whether a stage is promised with its transitions.
    """
    schedule = plan.schedule
    places, quadrants, copies = known_places(run, schedule.quadrants)
    hashes, where, number, times = np.unique(
        windows(places), return_index=True, return_inverse=True, return_counts=True
    )
    alone = np.full(len(hashes), True)  # in one quadrant only
    alone[number[quadrants[: len(number)] != quadrants[where[number]]]] = False

    of_rows = np.stack([windows(row) for row in yielded.astype(np.int64)])
    index = np.minimum(np.searchsorted(hashes, of_rows), len(hashes) - 1)
    hit = (hashes[index] == of_rows) & alone[index]
    owner = quadrants[where[index]]
    votes = np.stack(
        [(hit & (owner == quadrant)).sum(1) for quadrant in range(len(schedule.quadrants))]
    )
    tokens = votes / np.maximum(votes.sum(0), 1) * (yielded >= 0).sum(1)  # [quadrants, sequences]

    texts, worst = [], 0.0
    for name, first, stop, shares in promised(plan, trainer, smooth):
        rows = slice(first * trainer.batch_size, stop * trainer.batch_size)
        total = (stop - first) * trainer.batch_size * trainer.sequence_length
        got, lead = tokens[:, rows].sum(1), int(np.argmax(shares))
        texts.append(f"{name} {got[lead]:,.0f} of {total * shares[lead]:,.0f}")
        worst = max(worst, float(np.abs(got / total - shares).max()))
    once = alone & (times == 1)
    reads = np.bincount(index[hit], minlength=len(hashes))
    known = ~covered(np.flatnonzero(~once[number]), len(quadrants)) & (places >= 0)
    read = covered(where[once & (reads > 0)], len(quadrants))
    filled, unread = (yielded >= 0).mean(), (known & ~read).sum() / known.sum()
    often = "twice" if copies.max() == 1 else "too often"
    text = (
        f"tokens of each stage's first quadrant: {', '.join(texts)}; largest deviation "
        f"{worst:.2%} of a stage; of the corpus {unread:.2%} not read, "
        f"{(reads[once] > copies[where[once]]).mean():.2%} read {often}"
    )
    if filled < 1:
        text += f"; {1 - filled:.2%} of the sequences is padding"
    return worst < TOLERANCE, text


def promised(
    plan: TrialOrder, trainer: Trainer, smooth: bool
) -> list[tuple[str, int, int, np.ndarray]]:
    """Each stage's name, first step, end and share of each quadrant, from the schedule itself."""
    schedule, found = plan.schedule, []
    ends = [0, *schedule.boundaries.tolist()]
    for number, (start, stop) in enumerate(itertools.pairwise(ends)):
        stage = schedule.stages[number % len(schedule.stages)]
        first, last = trainer.step(plan, start), trainer.step(plan, stop)
        if first < last:
            shares = np.array(stage.quadrant_rows) / (stage.stop - stage.start)
            if smooth:
                shares = schedule.mixture(stage.start, stage.stop)
            found.append((stage.name, first, last, shares))
    return found


def known_places(run: RunDirectory, quadrants: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """All tokens of all training documents that are read, -2 after each, the quadrant of each and
    how often it is read: int64."""
    table = parquet_table(run.assignment)
    query = f"SELECT quadrant, part, row, copies FROM {table} WHERE copies > 0"
    with duckdb.connect() as connection:
        lines = connection.sql(query).to_arrow_table().to_pylist()
    readers = [TokenReader(path) for path in list_parts(run.tokens, ".arrayrecord")]
    texts, owners, copies = [], [], []
    for line in lines:
        ids = readers[line["part"]].read([line["row"]])[0].astype(np.int64)
        texts += [ids, [-2]]
        owners.append(np.full(len(ids) + 1, quadrants.index(line["quadrant"])))
        copies.append(np.full(len(ids) + 1, line["copies"]))
    return np.concatenate(texts), np.concatenate(owners), np.concatenate(copies)


def windows(tokens: np.ndarray) -> np.ndarray:
    """A hash of each WINDOW tokens in a row: uint64 [len - WINDOW + 1]."""
    values = tokens.astype(np.uint64) + np.uint64(7)
    total = np.zeros(len(values) - WINDOW + 1, np.uint64)
    for place in range(WINDOW):
        total = total * PRIME + values[place : len(total) + place]
    return total


def covered(starts: np.ndarray, count: int) -> np.ndarray:
    """Which of `count` places lie in a window that begins at one of `starts`: bool [count]."""
    change = np.zeros(count + 1, np.int64)
    np.add.at(change, starts, 1)
    np.add.at(change, np.minimum(starts + WINDOW, count), -1)
    return np.cumsum(change[:-1]) > 0


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", help="run directory, partitioned")
    parser.add_argument("--trial", default="frame", help="which order (default: frame)")
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    parser.add_argument("--environments", type=Path, help="where environments are kept")
    options = parser.parse_args()
    fine = True
    with tempfile.TemporaryDirectory() as scratch:
        environments = options.environments or Path(scratch)
        environments.mkdir(parents=True, exist_ok=True)
        for name in options.clients:
            if options.run is None:
                good, line = prepare(name, environments.resolve())
            else:
                run = RunDirectory(Path(options.run).resolve())
                good, line = check(name, run, options.trial, environments.resolve())
            print(line, flush=True)
            fine &= good
    return 0 if fine else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print_error(error)
        sys.exit(2)
