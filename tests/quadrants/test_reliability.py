"""How far quadrants are a property of the text: bins of a sample, agreement, and what is left."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from frame_jax import partition_table
from frame_jax.config.corpus import CorpusConfig, SourceConfig
from frame_jax.config.quadrants import AxesConfig, PartitionConfig
from frame_jax.config.run import RunConfig
from frame_jax.config.scoring import ScoringConfig, TableConfig
from frame_jax.config.training import ReferenceConfig
from frame_jax.errors import UserError
from frame_jax.quadrants import reliability
from frame_jax.run.partition_record import Reliability, Share


def random_scores(documents: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(documents)
    return {
        "loss": random.integers(0, 40, documents) / 8.0,  # with ties, which ids decide
        "gap": random.normal(size=documents),
        "tokens": random.integers(1, 500, documents),
        "scope": random.integers(0, 3, documents),
    }


@pytest.mark.parametrize("mode", ["nested", "independent"])
@pytest.mark.parametrize("axes", [(2, 2), (3, 1), (1, 4)])
def test_a_sample_is_cut_as_the_corpus_is(mode: str, axes: tuple[int, int]) -> None:
    values = random_scores(300)
    ids = [f"{i:04d}" for i in range(300)]
    table = pa.table(
        {
            **{"doc_id": ids, "ppl": values["loss"], "pd": values["gap"]},
            **{"tokens": values["tokens"], "domain": values["scope"].astype(str)},
        }
    )
    expected = partition_table(table, group_by=["domain"], axes=axes, mode=mode)  # type: ignore[arg-type]
    config = PartitionConfig(mode=mode, axes=AxesConfig(*axes))  # type: ignore[arg-type]
    found = reliability.cut_sample(config, values["loss"], values["gap"], values)
    names = [config.axes.quadrant_name(*bins) for bins in found[1:].T.tolist()]
    assert [config.axes.quadrants[quadrant] for quadrant in found[0]] == names
    assert names == expected.quadrants.tolist()


def test_a_correlation_has_an_interval_that_holds_the_true_one() -> None:
    random, inside = np.random.default_rng(0), 0
    true = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's of a normal distribution with Pearson's 0.6
    for _ in range(400):
        one, other = random.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 100).T
        found = reliability.rank_correlation(one, other)
        assert found.value == pytest.approx(stats.spearmanr(one, other).statistic)
        inside += found.low <= true <= found.high
    assert 0.92 <= inside / 400 <= 0.98
    assert reliability.rank_correlation(one, np.zeros(100)) == Share(0.0, -1.0, 1.0, 0.0)
    assert reliability.rank_correlation(one, -one).high == pytest.approx(-1)


def test_agreement_counts_tokens_and_knows_chance() -> None:
    tokens = np.array([10.0, 20, 30, 40])
    found = reliability.same_share(tokens, np.array([0, 0, 1, 1]), np.array([0, 1, 1, 0]))
    assert found.value == pytest.approx(0.4)  # documents 0 and 2
    assert found.chance == pytest.approx(0.3 * 0.5 + 0.7 * 0.5)
    random = np.random.default_rng(1)
    many, bins = random.integers(1, 100, 20_000).astype(float), random.integers(0, 4, (2, 20_000))
    found = reliability.same_share(many, *bins)
    assert found.low <= found.chance <= found.high
    assert found.chance == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("r", [0.1, 0.28, 0.5, 0.8])
def test_what_an_order_can_do_shrinks_by_the_root_of_the_correlation(r: float) -> None:
    """Halves by a number whose correlation between two pairs of models is r, in what is the text's:
    apart by sqrt(r) of what halves by the text's own number are."""
    random = np.random.default_rng(2)
    text = random.normal(size=200_000)
    pairs = [np.sqrt(r) * text + np.sqrt(1 - r) * random.normal(size=len(text)) for _ in range(2)]

    def apart(number: np.ndarray) -> float:
        high = number > np.median(number)
        return float(text[high].mean() - text[~high].mean())

    measured = reliability.rank_correlation(*pairs).value
    assert apart(pairs[0]) / apart(text) == pytest.approx(np.sqrt(measured), abs=0.02)


@pytest.mark.parametrize(("pd", "warned"), [(0.28, True), (-0.1, True), (0.5, False)])
def test_a_pd_of_the_models_own_is_warned_of(pd: float, warned: bool) -> None:
    other = Share(0.5, 0.4, 0.6, 0.25)
    own = Share(pd, pd, pd, 0.0)
    lines = [
        Reliability("half", domain, 100, other, own, other, other, other)
        for domain in (None, "prose")
    ]
    found = list(reliability.reliability_warnings(lines, "PD"))
    assert len(found) == warned
    if pd == 0.28:
        assert "Spearman 0.28" in found[0] and "about 53% of what it could" in found[0]
        [shared] = reliability.reliability_warnings(
            [dataclasses.replace(lines[0], compared_with="third")], "PD"
        )
        assert "a third model in the strong one's place" in shared
        assert "can do at most 53% of what it could" in shared


@pytest.mark.parametrize("others", [{"replicas": 2}, {"third": "a/model"}])
@pytest.mark.parametrize(
    ("scoring", "message"),
    [
        ({"reliability": 0}, r"scoring\.reliability alone, which is 0"),
        ({"table": TableConfig("t.parquet", "a", "b")}, r"of no use beside scoring\.table"),
    ],
)
def test_other_models_without_a_sample_are_refused(
    others: dict[str, Any], scoring: dict[str, Any], message: str
) -> None:
    corpus = CorpusConfig(sources=[SourceConfig(kind="jsonl", path="x.jsonl")])
    reference = ReferenceConfig(**others)
    RunConfig("run", corpus, reference=reference)
    RunConfig("run", corpus, scoring=ScoringConfig(**scoring))
    with pytest.raises(UserError, match=message):
        RunConfig("run", corpus, reference=reference, scoring=ScoringConfig(**scoring))
