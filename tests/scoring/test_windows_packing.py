"""Windows and rows: every target counted once, rows full, memory bounded, faster than any model."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frame_jax.scoring.packing import (
    best_fit_decreasing,
    make_batch,
    make_batches,
    pack_windows,
    row_tokens,
    window_sums,
)
from frame_jax.scoring.windows import windows

BOS = 7


@given(st.integers(0, 200), st.integers(2, 40), st.data())
def test_every_target_is_counted_once_on_overlap_tokens_of_the_document(n, context, data):
    overlap = data.draw(st.integers(0, context - 1))
    tokens = np.arange(n) + 100
    framed = [BOS, *tokens]
    counted = []
    for window in windows(5, tokens, BOS, context, overlap):
        assert window.document == 5 and 1 <= window.length <= context
        start = framed.index(window.ids[0])
        assert list(window.ids) == framed[start : start + window.length + 1]
        if counted:
            assert window.num_overlap_targets + 1 == max(
                overlap, 1
            )  # inputs before the first counted target
        else:
            assert window.num_overlap_targets == 0
        assert window.last == (window.ids[-1] == framed[-1])
        counted += list(window.ids[1 + window.num_overlap_targets :])
    assert counted == list(tokens)


@given(st.lists(st.integers(1, 60), max_size=80), st.integers(1, 4))
def test_rows_hold_every_window_once_and_never_more_than_their_length(lengths, pool_rows):
    given_windows = [
        window
        for document, n in enumerate(lengths)
        for window in windows(document, np.arange(n), BOS, 60, 0)
    ]
    rows = list(pack_windows(given_windows, 60, pool_rows))
    assert all(0 < row_tokens(row) <= 60 for row in rows)
    assert sorted(w.document for row in rows for w in row) == list(range(len(lengths)))


@given(st.lists(st.integers(1, 90), max_size=40), st.integers(1, 5))
def test_a_batch_shows_every_window_once_in_a_place_of_its_own(lengths, row_count):
    given_windows = [
        window
        for document, n in enumerate(lengths)
        for window in windows(document, 100 * document + np.arange(n), BOS, 60, 7)
    ]
    read = []
    for batch in make_batches(pack_windows(given_windows, 60, 4), row_count, 60):
        assert batch.inputs.shape == (row_count, 60)
        for ids, *row in zip(
            batch.segment_ids, batch.inputs, batch.targets, batch.positions, strict=True
        ):
            real = np.count_nonzero(ids)
            assert not ids[real:].any() and not np.any([part[real:] for part in row])
            assert list(ids[:real]) == sorted(ids[:real])  # segments stand side by side
            for segment in range(1, ids.max() + 1):
                inputs, targets, positions = (part[ids == segment] for part in row)
                assert list(positions) == list(range(len(inputs))) and len(inputs)
                read.append((*inputs, targets[-1]))
                assert list(inputs[1:]) == list(targets[:-1])
    assert sorted(read) == sorted(tuple(window.ids) for window in given_windows)


def heavy_tailed_windows(documents, context):
    lengths = np.random.default_rng(0).lognormal(5.5, 1.3, documents).astype(int) + 1
    for document, n in enumerate(lengths):
        yield from windows(document, np.zeros(n, np.int32), BOS, context, 0)


def test_rows_are_at_least_97_percent_full():
    rows = list(pack_windows(heavy_tailed_windows(5000, 1024), 1024, 64))
    assert sum(map(row_tokens, rows)) >= 0.97 * 1024 * len(rows)


def test_the_pool_is_bounded():
    taken = 0

    def counted():
        nonlocal taken
        for window in heavy_tailed_windows(5000, 1024):
            taken += window.length
            yield window

    given_back = 0
    for row in pack_windows(counted(), 1024, 16):
        assert taken - given_back <= 17 * 1024
        given_back += row_tokens(row)
    assert taken == given_back


def test_packing_keeps_up_with_an_accelerator():
    context = 1024
    ready = list(heavy_tailed_windows(20_000, context))
    started = time.perf_counter()
    tokens = sum(
        batch.tokens for batch in make_batches(pack_windows(ready, context, 256), 32, context)
    )
    rate = tokens / (time.perf_counter() - started)
    assert rate > 3e6, f"{rate:,.0f} tokens/s"


def test_best_fit_takes_the_fullest_row_that_still_holds_a_window():
    sizes = (60, 50, 45, 40)
    given_windows = [
        next(windows(document, np.zeros(n, int), BOS, 100, 0)) for document, n in enumerate(sizes)
    ]
    rows = best_fit_decreasing(given_windows, 100)
    assert [[window.length for window in row] for row in rows] == [[60, 40], [50, 45]]


@pytest.mark.parametrize("overlap", [0, 3])
def test_sums_take_counted_targets_of_each_window_and_no_padding(overlap):
    lengths = [5, 1, 23, 0, 9]
    given_windows = [
        window
        for document, n in enumerate(lengths)
        for window in windows(document, np.arange(n) + 1, BOS, 10, overlap)
    ]
    batch = make_batch(list(pack_windows(given_windows, 10, 4)), 8, 10)
    # Were the NLL of a target its own id, a document's sum would be 1 + 2 + ... + n.
    nll = np.stack([batch.targets, 2 * batch.targets]).astype(np.float32)
    nll[:, batch.segment_ids == 0] = np.nan
    sums = window_sums(nll, batch)
    totals = np.zeros((2, len(lengths)))
    for window, value in zip(batch.windows, sums.T, strict=True):
        totals[:, window.document] += value
    expected = np.array([n * (n + 1) / 2 for n in lengths])
    np.testing.assert_array_equal(totals, [expected, 2 * expected])
