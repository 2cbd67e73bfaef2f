"""Scores are a document's own: what else is scored, and how it is arranged, does not matter."""

import functools
import logging

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from frame_jax.config.scoring import ScoringConfig
from frame_jax.errors import UserError
from frame_jax.scoring import documents as documents_module
from frame_jax.scoring.documents import score_documents
from frame_jax.scoring.scorer import Scorer, score_rows
from tests.scoring.numpy_decoder import document_nll
from tests.scoring.scoring_helpers import (
    BFLOAT16_TOLERANCE,
    BOS,
    LENGTHS,
    make_documents,
    make_model,
)


def make_scorer(models, *, context=32, rows=8, loss_chunk=64):
    return Scorer(models, ScoringConfig(context, per_device_batch_size=rows, loss_chunk=loss_chunk))


def score(scorer, documents, overlap=8):
    return score_documents(scorer, documents, bos_id=BOS, overlap=overlap)


@pytest.fixture(scope="module")
def models():
    return [make_model(1), make_model(2, hidden_size=48)]


@pytest.fixture(scope="module")
def scorer(models):
    return make_scorer(models)


@pytest.mark.parametrize(("context", "overlap"), [(32, 0), (32, 8), (32, 31), (300, 16)])
def test_nll_sums_are_those_of_a_float64_decoder(models, documents, context, overlap):
    scores = score(make_scorer(models, context=context), documents, overlap)
    assert list(scores.predicted_tokens) == list(LENGTHS)
    for (decoder, params), nll in zip(models, scores.nll, strict=True):
        expected = [
            document_nll(decoder.config, params, tokens, BOS, context, overlap)
            for tokens in documents
        ]
        np.testing.assert_allclose(nll, expected, rtol=1e-5)


def test_a_document_without_tokens_scores_zero(scorer):
    scores = score(scorer, make_documents(lengths=(0, 3, 0)))
    assert list(scores.predicted_tokens) == [0, 3, 0]
    assert np.all(scores.nll[:, [0, 2]] == 0) and np.all(scores.nll[:, 1] > 0)


def test_no_documents_give_no_scores(scorer):
    scores = score(scorer, [])
    assert scores.predicted_tokens.shape == (0,) and scores.nll.shape == (2, 0)


def arrangements(scorer, models, documents, monkeypatch):
    """Scores of the documents under other batches, chunks, orders, company and pools.

    Rows of 7 windows take another path through attention than those of 8.
    """
    yield score(make_scorer(models, rows=7, loss_chunk=1), documents).nll
    yield score(make_scorer(models, rows=1), documents).nll
    yield score(scorer, documents[::-1]).nll[:, ::-1]
    yield score(scorer, [*make_documents(seed=9), *documents]).nll[:, len(documents) :]
    yield np.concatenate([score(scorer, [tokens]).nll for tokens in documents], axis=1)
    monkeypatch.setattr(documents_module, "POOL_ROWS", 1)
    yield score(scorer, documents).nll


def test_scores_do_not_depend_on_the_arrangement(scorer, models, documents, monkeypatch):
    base = score(scorer, documents).nll
    for other in arrangements(scorer, models, documents, monkeypatch):
        np.testing.assert_allclose(other, base, rtol=2e-6)


@pytest.mark.slow
def test_scores_hardly_depend_on_the_arrangement_in_bfloat16(scorer, documents, monkeypatch):
    exact = score(scorer, documents).nll
    models = [make_model(1, "bfloat16"), make_model(2, "bfloat16", hidden_size=48)]
    scorer = make_scorer(models)
    base = score(scorer, documents).nll
    np.testing.assert_allclose(base, exact, rtol=1e-2)
    for other in arrangements(scorer, models, documents, monkeypatch):
        np.testing.assert_allclose(other, base, rtol=BFLOAT16_TOLERANCE)


def test_one_model_scores_what_it_scores_beside_another(scorer, models, documents):
    both = score(scorer, documents).nll
    alone = score(make_scorer(models[1:]), documents).nll
    np.testing.assert_array_equal(alone[0], both[1])


def test_one_program_serves_all_batches(scorer, caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        scorer = make_scorer([make_model(3)])
        for lengths in (LENGTHS, (1,), (31,) * 50, (500,), ()):
            score(scorer, make_documents(lengths=lengths))
    assert caplog.text.count("Compiling jit(score_rows)") == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_float32_asks_every_backend_for_exact_products(dtype):
    decoder, params = make_model(1, dtype)
    specs = jax.tree.map(lambda _: PartitionSpec(), params)
    function = functools.partial(score_rows, (decoder,), (specs,), loss_chunk=64)
    program = jax.jit(function).lower((params,), *np.ones((4, 2, 256), np.int32)).as_text()
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) > 8  # matrices, attention, logits
    assert all(("HIGHEST" in line) == (dtype == "float32") for line in products)


def test_reports_add_up(scorer, documents):
    reports = []
    scores = score_documents(scorer, documents, bos_id=BOS, overlap=8, report=reports.append)
    assert len(reports) > 2
    assert sum(report.tokens for report in reports) == sum(LENGTHS)
    assert sum(report.documents for report in reports) == np.count_nonzero(LENGTHS)
    np.testing.assert_allclose(sum(report.nll for report in reports), scores.nll.sum(axis=1))


def test_fsdp_must_divide_the_devices(models):
    with pytest.raises(UserError, match=r"scoring.fsdp is 3, but a process has \d+ devices"):
        Scorer(models, ScoringConfig(32, per_device_batch_size=1, loss_chunk=64, fsdp=3))
