"""Which held-out documents the difference between an order and the baseline is made of.

    python tools/document_effects.py RUN ARM [--most 5]

A line a document, the largest first: its share of the difference in bits per byte (mean over seeds;
all shares sum to it), and the difference without it, mean and by seed.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from frame_jax.config.file import load
from frame_jax.errors import USAGE_ERROR, UserError, print_error
from frame_jax.evaluation.results import read_results, scores_folder
from frame_jax.report.paired_differences import baseline_trials
from frame_jax.run.directory import RunDirectory, list_parts
from frame_jax.sql import parquet_table, query


class Effects(NamedTuple):
    """Documents; their bytes float64 [documents]; arm minus baseline in bits [seeds, documents]."""

    ids: list[str]
    sizes: np.ndarray
    bits: np.ndarray

    def shares(self) -> np.ndarray:
        """What each document adds to the difference: float64 [documents]."""
        return self.bits.mean(axis=0) / self.sizes.sum()

    def without(self, index: int) -> np.ndarray:
        """The difference of each seed without one document: float64 [seeds]."""
        left = self.bits.sum(axis=1) - self.bits[:, index]
        return left / (self.sizes.sum() - self.sizes[index])


def read_effects(folder: Path, arm: str) -> Effects:
    """Reads the final losses by document of an arm and of the baseline, pair by pair.

    Raises:
        UserError: where the arm has not been evaluated beside its baseline.
    """
    directory = RunDirectory(folder)
    config, results = load(directory.config), read_results(directory)
    trials = [trial for trial in config.trials if trial.name in results]
    pairs = {one: base for one, base in baseline_trials(config, trials).items() if one.arm == arm}
    if not pairs:
        raise UserError(f"{folder}: {arm} has not been evaluated beside {config.baseline}")
    tokens = parquet_table(*list_parts(directory.tokens, ".parquet"))
    ids: tuple[str, ...] = ()
    columns = []
    for pair in pairs.items():
        one, two = (
            parquet_table(*list_parts(scores_folder(directory, t.name, weights), ".parquet"))
            for t in pair
            for weights in [results[t.name].final.name]
        )
        lines = query(
            lambda *line: line,
            f"SELECT doc_id, bytes, one.nll - two.nll FROM {one} one JOIN {two} two "
            f"USING (doc_id) JOIN {tokens} USING (doc_id) ORDER BY doc_id",
        )
        ids, sizes, nats = zip(*lines, strict=True)
        columns.append(np.array(nats) / math.log(2))
    return Effects(list(ids), np.array(sizes, np.float64), np.stack(columns))


def main(arguments: list[str] | None = None) -> int:
    """Prints the documents; returns the exit code."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("run", type=Path, metavar="RUN")
    options.add_argument("arm", metavar="ARM", help="such as frame")
    options.add_argument("--most", type=int, default=5, help="documents shown (default: 5)")
    given = options.parse_args(arguments)
    try:
        found = read_effects(given.run, given.arm)
    except UserError as error:
        print_error(error)
        return USAGE_ERROR
    shares = found.shares()
    print(f"{len(shares)} documents, difference {shares.sum():+.4f}")
    for index in np.argsort(-np.abs(shares))[: given.most]:
        left = found.without(int(index))
        seeds = " ".join(f"{value:+.4f}" for value in left)
        print(f"{shares[index]:+.4f}  without it {left.mean():+.4f} ({seeds})  {found.ids[index]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
