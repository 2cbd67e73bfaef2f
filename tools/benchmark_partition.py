"""Documents a second, and peak memory, of placing scored documents in quadrants; prints JSON.

    python tools/benchmark_partition.py --documents 20000000

Makes token tables and scores of synthetic documents in 40 groups (20 domains, 2 languages), and
places a tenth, a quarter and all of them: from the Parquet files of the tokenize and score phases
to `assignment.parquet` and `partition.json`; then lists the documents of every row file (`order`),
as a host would that makes them all. Training rows are not made. Each size runs in a process of its
own. With `--mixture` each is measured a second time, with domains that are read 0.4 times, twice
and once; `--turns` repeats all of it.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor

import duckdb

from frame_jax.config.quadrants import MixtureConfig, PartitionConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.quadrants.partition import write_assignment
from frame_jax.quadrants.rows import list_documents, training_conditions
from frame_jax.run.directory import RunDirectory, part_name
from frame_jax.sql import write_parquet

DOCUMENTS_A_PART = 500_000
MIXTURE = MixtureConfig(
    "domain", {f"domain-{number}": (0.4, 2.0, 1.0)[number % 3] for number in range(20)}
)


def generate(directory: RunDirectory, documents: int) -> None:
    """Writes RUN/tokens and RUN/scores: log-normal lengths and gaps, normal losses."""
    directory.tokens.mkdir(parents=True)
    directory.scores.mkdir()
    parts = math.ceil(documents / DOCUMENTS_A_PART)
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
                    md5(i::VARCHAR) AS doc_id, {part}::INTEGER AS part, i - {first} AS row,
                    CASE WHEN uniform(i, 1) < 0.05 THEN 'held_out' ELSE 'train' END AS split,
                    'source-' || hash(i, 2) % 100 AS source,
                    'domain-' || hash(i, 3) % 20 AS domain,
                    CASE WHEN uniform(i, 4) < 0.5 THEN 'en' ELSE 'zh' END AS language,
                    1 + exp(6 + 1.1 * normal(i, 5))::BIGINT AS tokens, 4 * tokens AS bytes,
                    3.5 + 0.7 * normal(i, 7) AS loss, 0.3 * exp(normal(i, 9)) + 0.05 * loss AS gap
                FROM range({first}, {stop}) AS numbers(i)
                """
            )
            name = part_name(part, parts, ".parquet")
            tokens = "SELECT * EXCLUDE (loss, gap) FROM made"
            scores = (
                "SELECT doc_id, tokens AS predicted_tokens, (loss + gap) * tokens AS nll_weak, "
                "loss * tokens AS nll_strong FROM made"
            )
            connection.execute(write_parquet(tokens, directory.tokens / name))
            connection.execute(write_parquet(scores, directory.scores / name))


def measure(documents: int, folder: str, mixed: bool) -> dict[str, float]:
    """The time and memory that placing the documents in `folder` takes."""
    directory, config = RunDirectory(folder), PartitionConfig(mixture=MIXTURE if mixed else None)
    started, cpu_started = time.perf_counter(), time.process_time()
    write_assignment(config, ScoringConfig(), directory)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes on Linux
    quadrants, parts, copies = config.axes.quadrants, config.rows.parts, 0
    row_files = [(quadrant, part) for quadrant in quadrants for part in range(parts)]
    tables, conditions = [directory.assignment], training_conditions(quadrants)
    listing, cpu_listing = time.perf_counter(), time.process_time()
    with list_documents(tables, conditions, row_files, parts, 0, directory.quadrants) as select:
        for row_file in row_files:
            copies += len(select(*row_file).tokens)
    return {
        "documents": documents,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        "documents_per_second": round(documents / seconds),
        "peak_rss_gb": round(peak * 1024 / 1e9, 2),
        "copies": copies,
        "order_seconds": round(time.perf_counter() - listing, 2),
        "order_cpu_seconds": round(time.process_time() - cpu_listing, 2),
        "order_peak_rss_gb": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2
        ),
    }


def measure_alone(documents: int, folder: str, mixed: bool) -> dict[str, float]:
    """As `measure`, in a process of its own; leaves tokens and scores."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(measure, documents, folder, mixed).result()
    shutil.rmtree(RunDirectory(folder).quadrants)
    return {"mixture": mixed, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=20_000_000)
    parser.add_argument("--folder", help="where to put about 200 bytes a document for a while")
    parser.add_argument("--mixture", action="store_true", help="also with partition.mixture")
    parser.add_argument("--turns", type=int, default=1, help="of each measurement")
    arguments = parser.parse_args()
    sizes = [arguments.documents // 10, arguments.documents // 4, arguments.documents]
    lines = []
    for documents in sizes:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            generate(RunDirectory(folder), documents)
            lines += [
                measure_alone(documents, folder, mixed)
                for _ in range(arguments.turns)
                for mixed in ([False, True] if arguments.mixture else [False])
            ]
    plain = [line["seconds"] for line in lines if not line["mixture"]]
    growth = plain[-1] / plain[0]
    n_log_n = sizes[-1] * math.log(sizes[-1]) / (sizes[0] * math.log(sizes[0]))
    report = {
        "cores": len(os.sched_getaffinity(0)),
        "groups": 40,
        "sizes": lines,
        "growth": round(growth, 2),
        "growth_of_n_log_n": round(n_log_n, 2),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
