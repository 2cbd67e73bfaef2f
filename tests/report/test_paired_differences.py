"""Differences on the items of a task, paired by seed and item, against NumPy and by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax.report.paired_differences import right_answer_bits, task_verdict
from frame_jax.report.study_results import NONE, UNTESTED, WORSE
from frame_jax.run.directory import part_name

ITEMS, PARTS, SEEDS = 90, 3, 3


def write_items(folder: Path, nll: np.ndarray, right: np.ndarray, size: np.ndarray) -> Path:
    """Parts of a task: `nll` and `size` are [items, choices], `right` [items]."""
    folder.mkdir(parents=True)
    for part, chosen in enumerate(np.array_split(np.arange(len(right)), PARTS)):
        columns = {"answer": right[chosen], "nll": nll[chosen].tolist()}
        columns["bytes"] = size[chosen].tolist()
        pq.write_table(pa.table(columns), folder / part_name(part, PARTS, ".parquet"))
    return folder


def test_the_answers_are_those_that_are_right_in_the_order_of_the_items(tmp_path: Path) -> None:
    nll = np.arange(12.0).reshape(4, 3)
    right, size = np.array([2, 0, 1, 2]), np.arange(12).reshape(4, 3) + 1
    bits, bytes_ = right_answer_bits(write_items(tmp_path / "task", nll, right, size))
    np.testing.assert_allclose(bits, np.array([2, 3, 7, 11]) / math.log(2))
    np.testing.assert_array_equal(bytes_, [3, 4, 8, 12])


def study(root: Path, effect: float) -> list[tuple[Path, Path]]:
    """Pairs of folders, one a seed, of an arm that is worse by `effect` nats an answer."""
    random = np.random.default_rng(7)
    right, size = random.integers(0, 4, ITEMS), random.integers(2, 30, (ITEMS, 4))
    hardness = random.gamma(2.0, 5.0, (ITEMS, 4))
    taste = random.normal(0, 0.3, (ITEMS, 4))  # of an arm for an item, under any seed
    pairs = []
    for seed in range(SEEDS):
        both = hardness + random.normal(0, 3)  # a seed moves both arms alike
        arms = {
            "arm": both + effect + taste + random.normal(0, 0.02),
            "other": both + random.normal(0, 0.1, (ITEMS, 4)),
        }
        folders = [
            write_items(root / f"{name}-{seed}", nll, right, size) for name, nll in arms.items()
        ]
        pairs.append((folders[0], folders[1]))
    return pairs


def test_a_task_is_compared_by_seed_and_item(tmp_path: Path) -> None:
    pairs = study(tmp_path, 0.5)
    found = task_verdict(pairs)
    read = [[right_answer_bits(folder) for folder in pair] for pair in pairs]
    size = read[0][0][1]
    d = np.array([one[0] - two[0] for one, two in read])
    np.testing.assert_allclose(found.by_seed, d.sum(1) / size.sum(), rtol=1e-12)
    picks = np.random.default_rng(0).integers(0, ITEMS, (4000, ITEMS))
    mean = d.mean(0)
    spread = (mean[picks].sum(1) / size[picks].sum(1)).std()  # as much as a resampling of items
    np.testing.assert_allclose(found.document_error, spread, rtol=0.1)
    assert found.by_seed[0] == pytest.approx(0.5 * ITEMS / math.log(2) / size.sum(), rel=0.3)


def test_verdicts_on_a_task_see_what_is_there_and_nothing_else(tmp_path: Path) -> None:
    words = {}
    for name, effect in (("same", 0.0), ("worse", 1.0)):
        words[name] = task_verdict(study(tmp_path / name, effect)).verdict
    assert words == {"same": NONE, "worse": WORSE}
    alone = task_verdict(study(tmp_path / "one", 1.0)[:1])
    assert alone.verdict == UNTESTED
