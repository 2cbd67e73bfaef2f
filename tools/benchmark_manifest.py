"""Rows a second, and peak memory, of the manifest of an order; prints JSON, a line a measurement.

    python tools/benchmark_manifest.py --rows 10000000

Makes rows of 128 ids out of synthetic documents, three a row or so, in four quadrants of four parts
each, and writes the manifest of FRAME's order over a tenth and over all of them, each size in a
process of its own. Rows of a corpus are longer: what reading and hashing them costs is measured
apart, as processor seconds a gigabyte of ids, on rows of 2,049.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from frame_jax.config.corpus import CorpusConfig, SourceConfig
from frame_jax.config.quadrants import PartitionConfig, RowsConfig
from frame_jax.config.run import RunConfig
from frame_jax.curriculum import digest
from frame_jax.export.order.manifest import write_manifest
from frame_jax.export.order.trial_order import RowFile, make_trial_order, read_rows
from frame_jax.quadrants.rows import list_training_documents
from frame_jax.records import write_tokens
from frame_jax.run.directory import RunDirectory, part_name, write_json
from frame_jax.sql import open_database, write_parquet

LENGTH, LONG, PARTS, BOS, EOS = 127, 2048, 4, 1, 2
DOCUMENT = 41  # text tokens of the mean document: with BOS and EOS, three fill a row


def make_config(root: str) -> RunConfig:
    """A run of such rows; nothing is trained."""
    return RunConfig(
        run_directory=root,
        corpus=CorpusConfig([SourceConfig("python_library")]),
        partition=PartitionConfig(rows=RowsConfig(sequence_length=LENGTH, parts=PARTS)),
    )


def generate(config: RunConfig, rows: int) -> None:
    """The assignment, and rows of random ids in which documents begin where they should."""
    directory, rng = RunDirectory(config.run_directory), np.random.default_rng(0)
    special = {"bos_id": BOS, "eos_id": EOS, "vocab_size": 1 << 16}
    write_json(directory.tokenizer.with_name("special_tokens.json"), special)
    documents, row_ids = rows * (LENGTH + 1) // (DOCUMENT + 2), LENGTH + 1
    with open_database(directory.quadrants) as connection:
        made = f"""
            SELECT md5(i::VARCHAR) AS doc_id, 0 AS part, i AS row, 'train' AS split,
                'Q' || (1 + hash(i, 1) % 4) AS quadrant,
                (1 + hash(i, 2) % {2 * DOCUMENT - 1})::BIGINT AS tokens
            FROM range({documents}) AS numbers(i)
            """
        connection.execute(write_parquet(made, directory.assignment))
    quadrants = config.partition.axes.quadrants
    counts: dict[str, dict[str, int]] = {}
    units = [(quadrant, part) for quadrant in quadrants for part in range(PARTS)]
    with list_training_documents(config, directory, units, directory.quadrants) as select:
        for quadrant, part in units:
            ends = np.cumsum(select(quadrant, part).tokens + 2)
            filled = -(-int(ends[-1]) // row_ids)
            ids = rng.integers(3, 1 << 16, filled * row_ids, np.uint32)
            ids[np.append(0, ends[:-1])] = BOS
            name = part_name(part, PARTS, ".arrayrecord")
            with write_tokens(directory.quadrants / quadrant / name) as writer:
                for row in ids.reshape(filled, row_ids):
                    writer.append(row)
            counts[quadrant] = {"rows": counts.get(quadrant, {"rows": 0})["rows"] + filled}
    write_json(directory.quadrants / "rows.json", counts)


def measure(config: RunConfig) -> dict[str, Any]:
    """The time and memory that the manifest takes."""
    directory = RunDirectory(config.run_directory)
    plan = make_trial_order(config, directory, "frame")
    folder = directory.manifest("frame")
    started, cpu_started = time.perf_counter(), time.process_time()
    write_manifest(config, directory, plan, folder)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "rows": plan.schedule.rows,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "rows_per_second": round(plan.schedule.rows / seconds),
        "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "bytes_per_row": round(size / plan.schedule.rows, 1),
    }


def long_rows(folder: Path) -> float:
    """Processor seconds to read and hash a gigabyte of ids in long rows, from the page cache."""
    path, rows, rng = folder / "long.arrayrecord", 20_000, np.random.default_rng(0)
    with write_tokens(path) as writer:
        for _ in range(rows):
            writer.append(rng.integers(3, 1 << 16, LONG + 1, np.uint32))
    started = time.process_time()
    for _, read in read_rows(RowFile(0, "Q1", 0, path, 0, rows)):
        digest.row_digests(read)
    return (time.process_time() - started) / (rows * 4 * (LONG + 1) / 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", help="where to put about a kilobyte a row for a while")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        long = {"cpu_seconds_per_gigabyte_of_long_rows": round(long_rows(Path(folder)), 2)}
        print(json.dumps({"cores": len(os.sched_getaffinity(0)), **long}), flush=True)
    for rows in (arguments.rows // 10, arguments.rows):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            config = make_config(folder)
            generate(config, rows)
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                print(json.dumps(pool.submit(measure, config).result()), flush=True)


if __name__ == "__main__":
    main()
