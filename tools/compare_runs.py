"""Compares what two runs have computed, bit by bit; exit code 1 if anything but timings differs.

    python tools/compare_runs.py RUN_A RUN_B

A change that computes nothing new must leave this at 0 for a run before and one after it, of one
config, seed and machine. Compared are the losses of every training run, scores, thresholds and
quadrants of all documents, training rows and evaluations, as far as either run has come.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.errors import USAGE_ERROR, UserError, print_error
from frame_jax.records import TokenReader

TIMINGS = ("seconds", "tokens_per_second", "mfu", "goodput", "data_seconds")


def read_metrics(path: Path) -> dict[str, Any]:
    """Every step's metrics but timings, by step."""
    lines = map(json.loads, path.read_text("utf-8").splitlines())
    return {
        f"step {line['step']}": {k: v for k, v in line.items() if k not in TIMINGS}
        for line in lines
    }


def read_table(path: Path) -> dict[str, Any]:
    """The columns of a Parquet file, its lines in the order of documents; numbers as their bits."""
    table = pq.read_table(path)
    keys = [name for name in ("part", "row", "doc_id", "item") if name in table.column_names]
    table = table.sort_by([(name, "ascending") for name in keys])
    return {f"column {name}": plain(table[name]) for name in table.column_names}


def plain(column: pa.ChunkedArray) -> Any:
    values = column.to_numpy()
    return values.tobytes() if values.dtype != object else values.tolist()


def read_rows(path: Path) -> dict[str, Any]:
    """The ids of every row."""
    reader = TokenReader(path)
    rows = reader.read(np.arange(len(reader)))
    reader.close()
    return {f"row {index}": ids.tobytes() for index, ids in enumerate(rows)}


def read_object(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "reference/*/metrics.jsonl": read_metrics,
    "reference/rows/*/*.arrayrecord": read_rows,
    "scores/*.parquet": read_table,
    "quadrants/partition.json": read_object,
    "quadrants/assignment.parquet": read_table,
    "quadrants/*/*.arrayrecord": read_rows,
    "pretrain/*/metrics.jsonl": read_metrics,
    "evaluation/*.json": read_object,
}


def differences(a: Path, b: Path) -> Iterator[str]:
    """What differs between two runs, a line a file.

    Raises:
        UserError: if a run has none of these files.
    """
    for root in (a, b):
        if not any(any(root.glob(pattern)) for pattern in READERS):
            raise UserError(
                f"{root} holds nothing to compare: it is no run directory, or not begun"
            )
    for pattern, read in READERS.items():
        for name in sorted(
            {path.relative_to(root) for root in (a, b) for path in root.glob(pattern)}
        ):
            missing = [str(root) for root in (a, b) if not (root / name).exists()]
            if missing:
                yield f"{name}: not in {missing[0]}"
                continue
            left, right = read(a / name), read(b / name)
            keys = [*left, *(key for key in right if key not in left)]
            unlike = [key for key in keys if repr(left.get(key)) != repr(right.get(key))]
            if unlike:
                yield f"{name}: {len(unlike):,} of {len(keys):,} differ, first: {unlike[0]}"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 for equal runs, 1 for others, 2 for bad input."""
    parser = argparse.ArgumentParser(description="Compare what two runs have computed, bit by bit.")
    parser.add_argument("a", type=Path, metavar="RUN_A")
    parser.add_argument("b", type=Path, metavar="RUN_B")
    options = parser.parse_args(arguments)
    try:
        found = list(differences(options.a, options.b))
    except UserError as error:
        print_error(error)
        return USAGE_ERROR
    print("\n".join(found) if found else "no difference")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
