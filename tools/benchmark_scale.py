"""What each thing that a run does once a document, row, part or step costs; prints JSON lines.

    python tools/benchmark_scale.py [--only NAME ...] [--scale 1.0] [--turns 3]

Every measurement is made at several sizes, on synthetic inputs where the text does not matter, in
turns of which the fastest counts. `exponent` is the slope of log(cpu_seconds) over log(n) between
the last two sizes: 1 grows like n, 0 not at all. `cpu_seconds` are of this process, all its
threads; on a machine that others use, they are the ones to trust.

  tokenize    Python's own library to RUN/tokens; n is tokens
  open        a token file; n is its records, bytes what an open reader keeps in memory
  read        eight records at random from one open file, as a list and as we read them; n is the
              file's records
  start       rows in 4,096 parts of 1,000 rows: listed, counted by opening, counted as recorded
  step        a batch of 64 rows from four quadrants of 64 parts; n is rows; a second line with an
              eighth of the files kept open
  selection   the selection map of a FRAME schedule; n is rows
  select      4,096 rows looked up in it; n is rows
  shuffle     documents listed in the order of their rows, by one worker; n is documents
  pack        documents to rows of 4,097 ids in one file; n is tokens
  best_fit    pieces planned by best fit; n is documents
  summary     totals over scores; n is documents
  hash        what is hashed of a finished unit; n is bytes
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from frame_jax.config.corpus import CorpusConfig, SourceConfig
from frame_jax.config.curriculum import CurriculumConfig
from frame_jax.config.quadrants import AxesConfig, RowsConfig
from frame_jax.config.run import RunConfig
from frame_jax.corpus import tokenize
from frame_jax.curriculum import loader
from frame_jax.curriculum.presets import expand_curriculum
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.curriculum.stages import resolve_curriculum
from frame_jax.quadrants.rows import (
    ShuffledDocuments,
    best_fit,
    plan_shuffle,
    read_shuffled,
    write_part,
)
from frame_jax.records import LENGTHS, OpenFiles, TokenReader, record_counts, write_tokens
from frame_jax.run import integrity
from frame_jax.run.directory import RunDirectory, list_parts, part_name, write_json
from frame_jax.run.special_tokens import SpecialTokens
from frame_jax.scoring import score

QUADRANTS = AxesConfig().quadrants
Line = dict[str, Any]


def fastest(turns: int, work: Callable[[], Any]) -> Line:
    """The least wall and processor time of some turns."""
    walls, cpus = [], []
    for _ in range(turns):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {"seconds": min(walls), "cpu_seconds": min(cpus)}


def resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def token_file(path: Path, records: int, ids: int = 64) -> Path:
    """So many records of made-up tokens."""
    content = np.random.default_rng(records).integers(0, 50_000, ids)
    with write_tokens(path) as writer:
        for _ in range(records):
            writer.append(content)
    return path


def measure_tokenize(root: Path, scale: float, turns: int) -> Iterator[Line]:
    for size in (2_000_000, 8_000_000):
        source = SourceConfig("python_library", max_bytes=int(size * scale))
        directory = RunDirectory(root / str(size))
        config = RunConfig(str(directory.root), CorpusConfig([source], parts=1))
        tokenize.prepare_tokenizer(config, directory)
        tokenizer = tokenize.load_tokenizer(directory)

        def work(
            config: RunConfig = config,
            directory: RunDirectory = directory,
            tokenizer: tokenize.Tokenizer = tokenizer,
        ) -> None:
            (chunks,) = tokenize.plan_parts(config.corpus)
            tokenize.write_part(chunks, 0, config, tokenizer, directory, lambda documents: None)

        spent = fastest(turns, work)
        table = pq.read_table(list_parts(directory.tokens, ".parquet")[0])
        yield {
            "n": pc.sum(table["tokens"]).as_py(),
            "documents": table.num_rows,
            "bytes": pc.sum(table["bytes"]).as_py(),
            **spent,
        }


def reader_bytes(path: Path, readers: int = 8) -> int:
    """What each of some open readers keeps in memory."""
    kept = [TokenReader(path)]
    before = resident()
    kept += [TokenReader(path) for _ in range(readers)]
    return (resident() - before) // readers


def measure_open(root: Path, scale: float, turns: int) -> Iterator[Line]:
    for records in (10_000, 100_000, 1_000_000):
        records = int(records * scale)
        path = token_file(root / f"{records}.arrayrecord", records)
        found = fastest(turns, lambda path=path: TokenReader(path))
        # In a process of its own, whose memory no writer has used before.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield {"n": records, **found, "bytes": pool.submit(reader_bytes, path).result()}


def measure_read(root: Path, scale: float, turns: int) -> Iterator[Line]:
    for records in (10_000, 100_000, 1_000_000):
        records = int(records * scale)
        reader = TokenReader(token_file(root / f"{records}.arrayrecord", records))
        chosen = np.random.default_rng(0).integers(records, size=(100, 8))

        def work(read: Callable[[np.ndarray], Any], chosen: np.ndarray = chosen) -> None:
            for indices in chosen:
                read(indices)

        as_list = fastest(turns, lambda reader=reader, work=work: work(reader._dense))
        found = fastest(turns, lambda reader=reader, work=work: work(reader.read))
        yield {
            "n": records,
            "records_read": chosen.size,
            "list_cpu_seconds": as_list["cpu_seconds"],
            **found,
        }


def measure_start(root: Path, scale: float, turns: int) -> Iterator[Line]:
    for parts in (512, 4096):
        parts = max(int(parts * scale), 2)
        folder = root / str(parts) / "Q1"
        names = [part_name(index, parts, ".arrayrecord") for index in range(parts)]
        whole = token_file(root / f"{parts}.arrayrecord", 1000)
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).hardlink_to(whole)
        listing = fastest(turns, lambda folder=folder: list_parts(folder, ".arrayrecord"))
        paths = list_parts(folder, ".arrayrecord")
        opened = fastest(turns, lambda paths=paths: record_counts(paths))
        write_json(folder.parent / LENGTHS, {"Q1": {path.stem: 1000 for path in paths}})
        recorded = fastest(turns, lambda paths=paths: record_counts(paths))
        yield {
            "n": parts,
            "listing_cpu_seconds": listing["cpu_seconds"],
            "opening_cpu_seconds": opened["cpu_seconds"],
            "opening_seconds": opened["seconds"],
            **recorded,
        }


def schedule_map(rows: int) -> SelectionMap:
    """FRAME over so many rows in four equal quadrants."""
    schedule = resolve_curriculum(
        expand_curriculum(CurriculumConfig(preset="frame"), AxesConfig()),
        dict.fromkeys(QUADRANTS, rows // 4),
        batch_size=64,
        sequence_length=64,
    )
    return SelectionMap(schedule, seed=0)


def measure_step(root: Path, scale: float, turns: int) -> Iterator[Line]:
    for rows in (100_000, 1_000_000):
        records = int(rows * scale) // 256
        whole = token_file(root / f"{rows}.arrayrecord", records)
        parts = {}
        for quadrant in QUADRANTS:
            folder = root / str(rows) / quadrant
            folder.mkdir(parents=True)
            for index in range(64):
                (folder / part_name(index, 64, ".arrayrecord")).hardlink_to(whole)
            parts[quadrant] = list_parts(folder, ".arrayrecord")
        selection = schedule_map(256 * records)
        for held in (256, 32):
            loader.OpenFiles = lambda held=held: OpenFiles(files=held)
            batches = loader.BatchSource(parts, selection, 64, np.arange(64), 64, 1)
            steps = np.random.default_rng(0).permutation(len(batches))[:30]

            def work(batches: loader.BatchSource = batches, steps: np.ndarray = steps) -> None:
                for step in steps:
                    batches[int(step)]

            work()
            found = fastest(turns, work)
            found = {key: value / len(steps) for key, value in found.items()}
            yield {"n": 256 * records, "files_kept_open": held, "files": 256, **found}
        loader.OpenFiles = OpenFiles


def measure_selection(root: Path, scale: float, turns: int) -> Iterator[Line]:
    for rows in (10**6, 10**7, 10**8, 10**9):
        rows = int(rows * scale)
        kept: list[SelectionMap] = []
        before = resident()
        found = fastest(turns, lambda rows=rows, kept=kept: kept.append(schedule_map(rows)))
        size = kept[0].counts.nbytes + kept[0].edges.nbytes
        yield {"n": rows, **found, "bytes": size, "resident": (resident() - before) // turns}


def measure_select(root: Path, scale: float, turns: int) -> Iterator[Line]:
    for rows in (10**6, 10**9):
        chosen = schedule_map(int(rows * scale))
        indices = np.random.default_rng(0).integers(len(chosen), size=4096)
        yield {"n": len(chosen), **fastest(turns, lambda c=chosen, i=indices: c.select(i))}


def documents_table(path: Path, documents: int) -> Path:
    """An assignment of so many documents to four quadrants."""
    random = np.random.default_rng(0)
    tokens = 1 + np.exp(random.normal(6, 1.1, documents)).astype(np.int64)
    table = {
        "doc_id": pa.array([f"document-{i:012d}" for i in range(documents)]),
        "part": np.zeros(documents, np.int32),
        "row": np.arange(documents),
        "split": pa.array(["train"]).take(np.zeros(documents, np.int64)),
        "quadrant": pa.array(QUADRANTS).take(random.integers(4, size=documents)),
        "tokens": tokens,
    }
    pq.write_table(pa.table(table), path)
    return path


def measure_shuffle(root: Path, scale: float, turns: int) -> Iterator[Line]:
    conditions = {quadrant: f"quadrant = '{quadrant}'" for quadrant in QUADRANTS}
    row_files = list(range(64 * len(QUADRANTS)))
    for documents in (100_000, 1_000_000, 4_000_000):
        documents = int(documents * scale)
        table = documents_table(root / "assignment.parquet", documents)

        def work(table: Path = table) -> None:
            write, slices = plan_shuffle([table], conditions, row_files, 64, 0, root)
            for part in slices.values():
                write(part, lambda amount: None)
            for row_file in row_files:
                read_shuffled([path for _, path in slices.values()], row_file)

        yield {"n": documents, **fastest(turns, work)}


def measure_pack(root: Path, scale: float, turns: int) -> Iterator[Line]:
    config = RowsConfig(sequence_length=4096)
    random = np.random.default_rng(0)
    for documents in (2_000, 20_000):
        documents = int(documents * scale)
        tokens = 1 + np.exp(random.normal(6, 1.1, documents)).astype(np.int64)
        parts = [root / part_name(part, 16, f"-{documents}.arrayrecord") for part in range(16)]
        for part, path in enumerate(parts):
            with write_tokens(path) as writer:
                for length in tokens[part::16]:
                    writer.append(np.minimum(random.zipf(1.2, length), 65_000))
        number = np.arange(documents)
        chosen = random.permutation(documents)
        wanted = ShuffledDocuments((number % 16)[chosen], (number // 16)[chosen], tokens[chosen])
        out = root / "out.arrayrecord"

        def work(
            wanted: ShuffledDocuments = wanted, parts: list[Path] = parts, out: Path = out
        ) -> None:
            write_part(wanted, parts, OpenFiles(), config, SpecialTokens(1, 2, 3), out)

        yield {"n": int(tokens.sum()), "documents": documents, **fastest(turns, work)}


def measure_best_fit(root: Path, scale: float, turns: int) -> Iterator[Line]:
    for documents in (10_000, 100_000, 1_000_000):
        documents = int(documents * scale)
        sizes = 3 + np.exp(np.random.default_rng(0).normal(6, 1.1, documents)).astype(np.int64)
        yield {"n": documents, **fastest(turns, lambda sizes=sizes: best_fit(sizes, 4097))}


def measure_summary(root: Path, scale: float, turns: int) -> Iterator[Line]:
    for documents in (100_000, 1_000_000, 10_000_000):
        documents = int(documents * scale)
        directory = RunDirectory(root / str(documents))
        path = directory.scores / part_name(0, 1, ".parquet")
        path.parent.mkdir(parents=True)
        nll = np.random.default_rng(0).random(documents)
        columns = {"predicted_tokens": np.ones(documents, np.int64)}
        pq.write_table(pa.table(columns | {"nll_weak": nll, "nll_strong": nll[::-1]}), path)
        yield {
            "n": documents,
            **fastest(turns, lambda d=directory, p=path: score.scores_summary(d, [p], "token")),
            "bytes": path.stat().st_size,
        }


def measure_hash(root: Path, scale: float, turns: int) -> Iterator[Line]:
    for size in (10_000_000, 100_000_000):
        size = int(size * scale)
        path = root / f"{size}.parquet"
        path.write_bytes(os.urandom(size))
        yield {"n": size, **fastest(turns, lambda path=path: integrity.file_checksum(path))}


MEASURES = {
    name.removeprefix("measure_"): function
    for name, function in list(globals().items())
    if name.startswith("measure_")
}


def exponent(lines: list[Line]) -> float | None:
    """The slope between the last line and the last before it of the same kind at another size."""
    last = lines[-1]
    kind = {key: last.get(key) for key in ("files_kept_open",)}
    before = [x for x in lines if all(x.get(k) == v for k, v in kind.items()) and x is not last]
    if not before:
        return None
    growth = last["cpu_seconds"] / max(before[-1]["cpu_seconds"], 1e-9)
    return round(math.log(growth) / math.log(last["n"] / before[-1]["n"]), 2)


def rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies all sizes")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", help="where to put a few gigabytes for a while")
    options = parser.parse_args()
    machine = {"cores": len(os.sched_getaffinity(0)), "machine": platform.machine()}
    print(json.dumps(machine | {"load": os.getloadavg()[0]}), flush=True)
    for name in options.only:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            lines: list[Line] = []
            for line in MEASURES[name](Path(folder), options.scale, options.turns):
                lines.append(line)
                shown = {k: rounded(v) for k, v in line.items()}
                print(json.dumps({"name": name, **shown, "exponent": exponent(lines)}), flush=True)


if __name__ == "__main__":
    main()
