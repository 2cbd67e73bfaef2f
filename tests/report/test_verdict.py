"""The statistics of a study against hand-made tables and simulations."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from frame_jax.report.study_results import BETTER, NONE, UNTESTED, WORSE
from frame_jax.report.verdict import (
    decide_verdict,
    detectable_difference,
    study_power,
    verdict_sentence,
)

# Two-sided 95% points of Student's t, from a printed table, by degrees of freedom.
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262}


@pytest.mark.parametrize("freedom", T)
def test_the_interval_is_that_of_students_table(freedom: int) -> None:
    random = np.random.default_rng(freedom)
    values = random.normal(0.1, 0.02, freedom + 1)
    found = decide_verdict(values.tolist(), 0.0)
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / freedom)
    half = T[freedom] * spread / math.sqrt(freedom + 1)
    assert found.low is not None and found.high is not None
    assert found.mean == pytest.approx(mean)
    assert found.low == pytest.approx(mean - half, abs=1e-3 * half)
    assert found.high == pytest.approx(mean + half, abs=1e-3 * half)


@pytest.mark.parametrize(
    ("by_seed", "document_error", "word"),
    [
        ([-0.10, -0.11, -0.12], 0.01, BETTER),
        ([0.10, 0.11, 0.12], 0.01, WORSE),
        ([-0.10, -0.11, -0.12], 0.06, NONE),  # as far from zero as documents alone may lead
        ([-0.01, -0.11, -0.21], 0.001, NONE),  # mean -0.11, half-width 4.303 * 0.1 / sqrt(3)
        ([0.0, 0.0, 0.0], 0.0, NONE),  # the same model twice
        ([0.5], 0.001, UNTESTED),
        ([0.1, 0.11], 0.001, WORSE),  # half-width 12.706 * 0.00707 / sqrt(2)
    ],
)
def test_the_rule(by_seed: list[float], document_error: float, word: str) -> None:
    assert decide_verdict(by_seed, document_error).verdict == word


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.floats(0, 1), st.floats(0.01, 100))
def test_a_verdict_has_no_unit_and_a_mirror(values: list[float], error: float, unit: float) -> None:
    mirror = {BETTER: WORSE, WORSE: BETTER, NONE: NONE}
    here = decide_verdict(values, error)
    assert decide_verdict([-v for v in values], error).verdict == mirror[here.verdict]
    assert here.low is not None and here.high is not None
    assert here.low <= here.mean <= here.high
    if here.verdict != NONE:  # away from the edge, where rounding decides
        assert decide_verdict([unit * v for v in values], unit * error).verdict in (
            here.verdict,
            NONE,
        )


def simulate(studies: int, effect: float, seed: int, seeds: int = 3) -> list[str]:
    """Verdicts of studies of `seeds` pairs of models, read on the same 200 documents.

    A model's loss on a document is its own level, which its seed decides, and what this document
    makes of it.
    """
    random = np.random.default_rng(seed)
    size = random.integers(100, 3000, 200).astype(float)
    words = []
    for _ in range(studies):
        level = effect + random.normal(0, 0.004, seeds)
        d = (level[:, None] + random.normal(0, 0.05, (seeds, len(size)))) * size
        mean = d.mean(0)
        off = mean - mean.sum() / size.sum() * size
        error = math.sqrt((off**2).sum()) / size.sum()
        words.append(decide_verdict((d.sum(1) / size.sum()).tolist(), error).verdict)
    return words


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_two_arms_of_the_same_order_differ_in_one_study_of_twenty_at_most(seeds: int) -> None:
    """That is: 19 studies of 20 or more end in no difference, on the average of 4,000."""
    words = simulate(4000, 0.0, seed=seeds, seeds=seeds)
    right = sum(word == NONE for word in words)
    assert right / 200 >= 19 - 3 * math.sqrt(4000 * 0.05 * 0.95) / 200
    assert words.count(BETTER) + words.count(WORSE) + right == 4000


def test_how_often_equal_orders_differ_if_both_chances_are_alike() -> None:
    """As docs/studies.md says: each bar is for one chance, and a mean is off by both."""
    shares = np.geomspace(0.01, 100, 200)
    worst = {
        seeds: max(2 * study_power(0.0, 1.0, float(share), seeds) for share in shares)
        for seeds in (3, 5, 10)
    }
    assert worst == pytest.approx({3: 0.058, 5: 0.087, 10: 0.115}, abs=0.003)
    page = (Path(__file__).parents[2] / "docs" / "studies.md").read_text("utf-8")
    said = "six in a hundred under three seeds, nine under five and twelve under ten"
    assert said in " ".join(page.split())


@pytest.mark.slow
def test_without_the_error_over_documents_the_rule_is_the_interval_alone() -> None:
    random = np.random.default_rng(0)
    words = [decide_verdict(random.normal(0, 1, 3).tolist(), 0.0).verdict for _ in range(4000)]
    assert abs(words.count(NONE) / 4000 - 0.95) < 3 * math.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.parametrize("freedom", T)
def test_without_documents_the_detectable_difference_is_that_of_a_t_test(freedom: int) -> None:
    """The power of a t test is a tail of the noncentral t, by SciPy."""
    effect = detectable_difference(0.01, 0.0, freedom + 1)
    seen = stats.nct.sf(stats.t.ppf(0.975, freedom), freedom, effect / 0.01)
    assert seen == pytest.approx(0.8, abs=1e-3)


def test_without_a_spread_over_seeds_it_is_that_of_a_normal() -> None:
    normal = NormalDist()
    expected = (normal.inv_cdf(0.975) + normal.inv_cdf(0.8)) * 0.02
    assert detectable_difference(0.0, 0.02, 3) == pytest.approx(expected, rel=1e-4)
    assert detectable_difference(0.0, 0.0, 3) == 0


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 2.0, 20.0])
def test_a_difference_of_the_size_called_detectable_is_seen_four_times_in_five(
    seeds: int, share: float
) -> None:
    """Of 1,000 studies whose mean is off by seeds and by documents, and whose verdict is
    `decide_verdict`'s.

    Args:
        seeds: Of each study.
        share: The bar of documents over the mean bar of seeds.
    """
    random = np.random.default_rng(seeds)
    error = 0.01 / math.sqrt(seeds)
    of_documents = share * T[seeds - 1] * error / NormalDist().inv_cdf(0.975)
    effect = detectable_difference(error, of_documents, seeds)
    by_seed = effect + random.normal(0, of_documents, (1000, 1))
    by_seed = by_seed + random.normal(0, 0.01, (1000, seeds))
    seen = [decide_verdict(values.tolist(), of_documents).verdict for values in by_seed]
    assert seen.count(WORSE) / 1000 == pytest.approx(0.8, abs=3 * math.sqrt(0.16 / 1000))


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.floats(0, 1))
def test_what_is_called_no_difference_is_not_above_what_would_have_been_seen(
    values: list[float], document_error: float
) -> None:
    found = decide_verdict(values, document_error)
    assert found.high is not None and found.detectable is not None
    bar = max(found.high - found.mean, 1.96 * document_error)
    assert found.detectable >= bar * (1 - 1e-9) - 1e-12
    if found.verdict == NONE:
        assert abs(found.mean) <= found.detectable * (1 + 1e-9) + 1e-12


def test_the_sentence_on_no_difference_does_not_contradict_itself() -> None:
    """A mean outside its interval over seeds and within the error over documents."""
    found = decide_verdict([0.0099, 0.0181, 0.0263], 0.0107)
    assert found.verdict == NONE and found.detectable is not None
    assert found.mean < found.detectable
    said = verdict_sentence(found, "frame", "random", "bits per byte")
    assert said.endswith(f"it would have seen {found.detectable:.4f} four times in five.")


def test_both_kinds_of_chance_are_needed() -> None:
    """Documents alone: models that always differ by the same, on too few documents."""
    edge = NormalDist().inv_cdf(0.975)
    assert decide_verdict([0.02, 0.0201, 0.0199], 0.02 / edge * 0.99).verdict == WORSE
    assert decide_verdict([0.02, 0.0201, 0.0199], 0.02 / edge * 1.01).verdict == NONE


def test_sentences_say_what_was_found_and_what_could_have_been() -> None:
    unit = "bits per byte"
    worse = verdict_sentence(decide_verdict([0.02, 0.021, 0.022], 0.001), "frame", "random", unit)
    assert worse.startswith("frame is worse than random: +0.0210 bits per byte (95% interval")
    assert "over 3 seeds +0.0185 to +0.0235; ±0.0010 over documents" in worse
    vague = verdict_sentence(decide_verdict([0.02, -0.02, 0.001], 0.001), "frame", "random", unit)
    assert "no difference that this study could see" in vague and "would have seen" in vague
    one = verdict_sentence(decide_verdict([0.02], 0.001), "frame", "random", unit)
    assert "one seed proves nothing" in one and "better" not in one and "worse" not in one
