"""Scores documents: token ids in, NLL sums and predicted tokens of each document out."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from frame_jax.scoring.packing import make_batches, pack_windows, window_sums
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
    what the model's own arithmetic does. Documents are the text tokens of each, without BOS or EOS,
    read as needed; `bos_id` conditions their first tokens. `report` is called with each batch's
    share, in order.
    """
    predicted: list[int] = []

    def all_windows() -> Iterator[Window]:
        for document, tokens in enumerate(documents):
            predicted.append(len(tokens))
            yield from windows(document, tokens, bos_id, scorer.context, overlap)

    owner, nll = score_windows(scorer, all_windows(), scorer.row_length, report)
    totals = [np.bincount(owner, weights=model, minlength=len(predicted)) for model in nll]
    return Scores(np.array(predicted, np.int64), np.array(totals))


def score_windows(
    scorer: Scorer,
    windows: Iterable[Window],
    row_length: int,
    report: Callable[[BatchScores], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores windows in batches; returns the document of each, int64 [windows], and its sums,
    float64 [values, windows], in the order in which they were packed.

    The host packs and starts the next batch while the devices work on the one before. Windows are
    read as needed; they have at most `row_length` tokens, those of a packed row, which divides
    those of the scorer's batches.
    """
    rows = pack_windows(windows, row_length, POOL_ROWS)
    batches = make_batches(rows, scorer.rows * scorer.context // row_length, row_length)
    started = ((batch, scorer(batch)) for batch in batches)
    owners, sums = [np.zeros(0, np.int64)], [np.zeros((scorer.values, 0))]
    for current, _ in itertools.pairwise(itertools.chain(started, [None])):
        assert current is not None  # None comes last, in place of a next batch
        batch, values = current
        owners.append(np.array([window.document for window in batch.windows], np.int64))
        sums.append(window_sums(np.asarray(values), batch))
        if report is not None:
            counted = sum(window.length - window.num_overlap_targets for window in batch.windows)
            ended = sum(window.last for window in batch.windows)
            report(BatchScores(ended, counted, sums[-1].sum(axis=1)))
    return np.concatenate(owners), np.concatenate(sums, axis=1)
