"""Means of checkpoints against float64 sums."""

import numpy as np
import pytest

from frame_jax.checkpoints import mean_of_checkpoints


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_mean_weighs_all_checkpoints_the_same(count: int) -> None:
    random = np.random.default_rng(0)
    trees = [
        {"a": random.standard_normal((3, 4), np.float32), "b": {"c": random.random(5, np.float32)}}
        for _ in range(count)
    ]
    mean = mean_of_checkpoints(iter(trees))
    for got, leaves in (
        (mean["a"], [t["a"] for t in trees]),
        (mean["b"]["c"], [t["b"]["c"] for t in trees]),
    ):
        wanted = np.mean(np.array(leaves, np.float64), axis=0)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=2e-7)


def test_the_checkpoints_themselves_stay_as_they_are() -> None:
    trees = [{"a": np.full(2, value, np.float32)} for value in (1, 3)]
    assert mean_of_checkpoints(trees)["a"].tolist() == [2, 2]
    assert trees[0]["a"].tolist() == [1, 1]
