"""Scores documents: token ids in, NLL sums and predicted tokens of each document out.

Packing, the mapped call and the sums in one pipeline: the host packs a batch while the devices
work on the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from frame_jax.scoring.packing import Batch, make_batches, pack_windows, window_sums
from frame_jax.scoring.scorer import Scorer
from frame_jax.scoring.windows import Window, windows

POOL_ROWS = 256  # rows of windows that the packer chooses from, on the host


class Scores(NamedTuple):
    """Scores of a sequence of documents.

    Attributes:
        predicted_tokens: [documents] int64; 0 for a document without tokens.
        nll: [models, documents] float64, sums in nats; 0 for a document without tokens.
    """

    predicted_tokens: np.ndarray
    nll: np.ndarray


class BatchScores(NamedTuple):
    """What one batch added to the scores, for progress reports.

    Attributes:
        documents: Documents that ended in it.
        tokens: Tokens that it counted.
        nll: [models] float64, sums over those tokens.
    """

    documents: int
    tokens: int
    nll: np.ndarray


def score_documents(
    scorer: Scorer,
    documents: Iterable[np.ndarray],
    *,
    bos_id: int,
    overlap: int = 0,
    report: Callable[[BatchScores], None] | None = None,
) -> Scores:
    """Scores documents under every model of `scorer`.

    Sums are made in float64 on the host, so they do not depend on how documents are packed beyond
    what the model's own arithmetic does.

    Args:
        scorer: The models.
        documents: Text tokens of each document, without BOS or EOS. Read as needed.
        bos_id: Id that conditions a document's first token.
        overlap: As in `ScoringConfig.overlap`.
        report: Called with each batch's share, in order.
    """
    predicted: list[int] = []

    def all_windows() -> Iterator[Window]:
        for document, tokens in enumerate(documents):
            predicted.append(len(tokens))
            yield from windows(document, tokens, bos_id, scorer.context, overlap)

    owners: list[np.ndarray] = [np.zeros(0, np.int64)]
    sums: list[np.ndarray] = [np.zeros((len(scorer.models), 0))]

    def read(batch: Batch, nll: jax.Array) -> None:
        batch_sums = window_sums(np.asarray(nll), batch)
        owners.append(np.array([window.document for window in batch.windows], np.int64))
        sums.append(batch_sums)
        if report is not None:
            counted = sum(window.length - window.num_overlap_targets for window in batch.windows)
            ended = sum(window.last for window in batch.windows)
            report(BatchScores(ended, counted, batch_sums.sum(axis=1)))

    length = scorer.row_length
    rows = pack_windows(all_windows(), length, POOL_ROWS)
    under_way: tuple[Batch, jax.Array] | None = None
    for batch in make_batches(rows, scorer.rows * scorer.context // length, length):
        started = (batch, scorer(batch))
        if under_way is not None:
            read(*under_way)
        under_way = started
    if under_way is not None:
        read(*under_way)

    owner, nll = np.concatenate(owners), np.concatenate(sums, axis=1)
    totals = [np.bincount(owner, weights=model, minlength=len(predicted)) for model in nll]
    return Scores(np.array(predicted, np.int64), np.array(totals))
