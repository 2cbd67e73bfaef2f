"""Time, memory and disk of what a run does with tables of documents, step by step; JSON lines.

    python tools/benchmark_partition.py --documents 1000000 10000000 100000000 --folder SPACE

Makes token tables and scores of synthetic documents in 40 groups (20 domains, 2 languages; a share
of ids given again), without tokens, and runs in a process of its own each of

  duplicates  rejects ids given again, and writes their parts once more
  summary     totals of the tables of tokens
  quadrants   scores to `assignment.parquet` and `partition.json`
  order       the documents of every row file in their order; rows are not made

`cpu_seconds` are of the process and those it started; on a machine that others use, they are the
ones to trust. `peak_rss` is of the process alone, `peak_rss_together` of all at one time (looked at
ten times a second, pages that several share counted for each). `scratch` is the most that lay in
the run directory at one time beyond what lay there before (likewise). At the end come the exponents
of cpu_seconds between sizes: 1 grows like n. With `--mixture` domains are read 0.4 times, twice and
once.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import multiprocessing
import os
import re
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb

from frame_jax.config.corpus import CorpusConfig, SourceConfig
from frame_jax.config.quadrants import MixtureConfig, PartitionConfig, RowsConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.config.workers import WorkersConfig
from frame_jax.corpus.rejected import METADATA, reject_duplicates, summarise
from frame_jax.quadrants.partition import write_assignment
from frame_jax.quadrants.rows import read_shuffled, shuffle_tables, training_conditions
from frame_jax.run.directory import RunDirectory, part_name
from frame_jax.sql import sql_literal, write_parquet

DOCUMENTS_A_PART = 500_000
MIXTURE = MixtureConfig(
    "domain", {f"domain-{number}": (0.4, 2.0, 1.0)[number % 3] for number in range(20)}
)
Line = dict[str, Any]


def generate(directory: RunDirectory, documents: int, duplicates: float) -> None:
    """Writes RUN/tokens and RUN/scores: log-normal lengths and gaps, normal losses; about a share
    of `duplicates` has the id of an earlier document."""
    directory.tokens.mkdir(parents=True)
    directory.scores.mkdir()
    parts = math.ceil(documents / DOCUMENTS_A_PART)
    metadata = f", KV_METADATA {{{sql_literal(METADATA.decode())}: '{{}}'}})"
    with duckdb.connect() as connection:
        connection.execute(
            """
            SET enable_progress_bar = false;
            CREATE MACRO uniform(i, stream) AS (hash(i, stream) % 1000003 + 0.5) / 1000003;
            CREATE MACRO normal(i, stream) AS
                sqrt(-2 * ln(uniform(i, stream))) * cos(6.283185307179586 * uniform(i, stream + 1))
            """
        )
        for part in range(parts):
            first, stop = (documents * p // parts for p in (part, part + 1))
            connection.execute(
                f"""
                CREATE OR REPLACE TABLE made AS SELECT
                    md5((CASE WHEN uniform(i, 11) < {duplicates} THEN hash(i, 12) % (i + 1)
                        ELSE i END)::VARCHAR) AS doc_id,
                    {part}::INTEGER AS part, i - {first} AS row,
                    CASE WHEN uniform(i, 1) < 0.05 THEN 'held_out'
                        WHEN uniform(i, 1) < 0.1 THEN 'reference' ELSE 'train' END AS split,
                    1 + exp(6 + 1.1 * normal(i, 5))::BIGINT AS tokens, 4 * tokens AS bytes,
                    'source-' || hash(i, 2) % 100 AS source,
                    'domain-' || hash(i, 3) % 20 AS domain,
                    CASE WHEN uniform(i, 4) < 0.5 THEN 'en' ELSE 'zh' END AS language,
                    'data/shard-{part:05d}.jsonl.zst' AS file, i - {first} + 1 AS line,
                    3.5 + 0.7 * normal(i, 7) AS loss, 0.3 * exp(normal(i, 9)) + 0.05 * loss AS gap
                FROM range({first}, {stop}) AS numbers(i)
                """
            )
            name = part_name(part, parts, ".parquet")
            tokens = write_parquet(
                "SELECT * EXCLUDE (loss, gap) FROM made", directory.tokens / name
            )
            connection.execute(tokens.removesuffix(")") + metadata)
            scores = (
                "SELECT doc_id, tokens AS predicted_tokens, (loss + gap) * tokens AS nll_weak, "
                "loss * tokens AS nll_strong FROM made WHERE split <> 'reference'"
            )
            connection.execute(write_parquet(scores, directory.scores / name))


def find_duplicates(directory: RunDirectory, config: PartitionConfig) -> Line:
    reject_duplicates(directory, WorkersConfig())
    with directory.rejected.open(encoding="utf-8") as lines:
        return {"rejected": sum(1 for _ in lines)}


def sum_tables(directory: RunDirectory, config: PartitionConfig) -> Line:
    corpus = CorpusConfig([SourceConfig("python_library")])
    return {"tokens": sum(summarise(directory, corpus)["tokens"].values())}


def place(directory: RunDirectory, config: PartitionConfig) -> Line:
    return {"warnings": len(write_assignment(config, ScoringConfig(), directory).warnings)}


def order(directory: RunDirectory, config: PartitionConfig) -> Line:
    parts, conditions = config.rows.parts, training_conditions(config.axes.quadrants)
    row_files, scratch = list(range(len(conditions) * parts)), directory.quadrants / ".tmp-shuffled"
    listed = [directory.assignment], conditions, row_files, parts, 0, scratch, WorkersConfig()
    paths = shuffle_tables(*listed)
    copies = sum(len(read_shuffled(paths, row_file).tokens) for row_file in row_files)
    return {"copies": copies, "files": len(paths)}


STEPS = {"duplicates": find_duplicates, "summary": sum_tables, "quadrants": place, "order": order}


def work_alone(step: str, directory: RunDirectory, config: PartitionConfig, found: Any) -> None:
    """One step; puts what it took, and what it says, into the queue `found`."""
    started, cpu_started = time.perf_counter(), sum(os.times()[:4])
    said = STEPS[step](directory, config)
    status = Path("/proc/self/status").read_text("utf-8")
    found.put(
        {
            "seconds": round(time.perf_counter() - started, 2),
            "cpu_seconds": round(sum(os.times()[:4]) - cpu_started, 2),
            "peak_rss": int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) * 1024,
            **said,
        }
    )


def family(process: int) -> Iterator[int]:
    """A process and all that it started."""
    yield process
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from family(int(child))


def resident_bytes(process: int) -> int:
    """What a process and all that it started hold in memory."""
    pages = 0
    with contextlib.suppress(OSError):  # one has ended
        for each in family(process):
            pages += int(Path(f"/proc/{each}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def disk_bytes(folder: Path) -> int:
    """What lies in a folder."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it has gone
                total += Path(root, name).stat().st_size
    return total


def measure(step: str, directory: RunDirectory, config: PartitionConfig) -> Line:
    """Time, memory and disk of one step."""
    context = multiprocessing.get_context("spawn")
    found, ended = context.SimpleQueue(), threading.Event()
    before, most = disk_bytes(directory.root), {"rss": 0, "disk": 0}
    process = context.Process(target=work_alone, args=(step, directory, config, found))
    process.start()

    def watch(name: str, look: Callable[[], int]) -> None:
        while not ended.wait(0.1):
            most[name] = max(most[name], look())

    looks = {"rss": lambda: resident_bytes(process.pid or 0)}
    looks["disk"] = lambda: disk_bytes(directory.root) - before
    watchers = [threading.Thread(target=watch, args=look) for look in looks.items()]
    for watcher in watchers:
        watcher.start()
    process.join()
    ended.set()
    for watcher in watchers:
        watcher.join()
    if process.exitcode:
        raise SystemExit(f"{step} failed")
    return {**found.get(), "peak_rss_together": most["rss"], "scratch": most["disk"]}


def exponents(lines: list[Line]) -> Iterator[Line]:
    """The slopes of log(cpu_seconds) over log(documents) of each step between sizes."""
    for step in STEPS:
        own = [line for line in lines if line["step"] == step]
        yield {
            "step": step,
            "exponents": [
                round(
                    math.log(two["cpu_seconds"] / one["cpu_seconds"])
                    / math.log(two["documents"] / one["documents"]),
                    2,
                )
                for one, two in itertools.pairwise(own)
            ],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = [1_000_000, 3_000_000, 10_000_000]
    parser.add_argument("--documents", type=int, nargs="+", default=sizes)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--folder", help="where to put about 200 bytes a document for a while")
    parser.add_argument("--duplicates", type=float, default=0.001, help="share of ids given again")
    parser.add_argument("--rows_parts", type=int, default=1024, help="row files of a quadrant")
    parser.add_argument("--mixture", action="store_true", help="with partition.mixture")
    arguments = parser.parse_args()
    config = PartitionConfig(
        rows=RowsConfig(parts=arguments.rows_parts),
        mixture=MIXTURE if arguments.mixture else None,
    )
    print(json.dumps({"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}))
    lines = []
    for documents in arguments.documents:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            directory, started = RunDirectory(folder), time.perf_counter()
            generate(directory, documents, arguments.duplicates)
            size, seconds = disk_bytes(directory.root), round(time.perf_counter() - started, 1)
            print(json.dumps({"documents": documents, "bytes": size, "seconds": seconds}))
            for step in arguments.steps:
                found = measure(step, directory, config)
                lines.append({"step": step, "documents": documents, **found})
                print(json.dumps(lines[-1]), flush=True)
    for line in exponents(lines):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
