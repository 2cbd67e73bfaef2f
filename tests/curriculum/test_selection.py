"""The selection map: exact, without replacement, stateless, the same rows for every order."""

import math
import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frame_jax.config.curriculum import CurriculumConfig
from frame_jax.config.quadrants import AxesConfig
from frame_jax.curriculum.permutation import permutation_keys, permute
from frame_jax.curriculum.presets import expand_curriculum
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.curriculum.stages import DataSchedule, resolve_curriculum
from tests.curriculum.orders import PRESETS, preset_map, schedules

QUADRANT_ROWS = {"Q1": 1003, "Q2": 990, "Q3": 1100, "Q4": 800}


def selected(selection: SelectionMap) -> np.ndarray:
    """int64 [epochs, epoch rows, 2]: quadrant and row of everything in order."""
    pairs = np.stack(selection.select(np.arange(len(selection))), axis=1)
    return pairs.reshape(selection.schedule.epochs, selection.schedule.epoch_rows, 2)


@settings(max_examples=80, deadline=None)
@given(schedules(), st.integers(0, 3))
def test_every_row_comes_exactly_once_an_epoch(schedule: DataSchedule, seed: int) -> None:
    available = np.array(schedule.available)
    used = np.sum([stage.quadrant_rows for stage in schedule.stages], axis=0)
    if schedule.epoch_rows == available.sum():
        assert (used == available).all()
    for epoch in selected(SelectionMap(schedule, seed)):
        assert len(np.unique(epoch, axis=0)) == schedule.epoch_rows
        assert (np.bincount(epoch[:, 0], minlength=len(available)) == used).all()
        assert (epoch[:, 1] < available[epoch[:, 0]]).all() and (epoch >= 0).all()


@settings(max_examples=80, deadline=None)
@given(schedules())
def test_realised_mixture_follows_the_asked_one(schedule: DataSchedule) -> None:
    selection = SelectionMap(schedule, seed=1)
    quadrants = selected(selection)[0, :, 0]
    realised = np.cumsum(quadrants[:, None] == np.arange(len(schedule.quadrants)), axis=0)
    asked = schedule.cumulative(np.arange(1, schedule.epoch_rows + 1))
    np.testing.assert_allclose(asked.sum(1), np.arange(1, schedule.epoch_rows + 1), rtol=1e-9)
    at_edges = np.abs(realised - asked)[selection.edges[1:] - 1]
    assert at_edges.max() < len(schedule.quadrants)
    assert np.abs(realised - asked).max() < np.diff(selection.edges).max() + len(schedule.quadrants)


@settings(max_examples=60, deadline=None)
@given(schedules())
def test_hard_stages_hold_their_own_rows_to_the_row(schedule: DataSchedule) -> None:
    if np.isfinite(schedule.steepness):
        return
    for epoch in selected(SelectionMap(schedule, seed=1)):
        for stage in schedule.stages:
            quadrants = epoch[stage.start : stage.stop, 0]
            assert (
                tuple(np.bincount(quadrants, minlength=len(schedule.quadrants)))
                == stage.quadrant_rows
            )


@settings(max_examples=60, deadline=None)
@given(schedules(), st.randoms(use_true_random=False))
def test_any_piece_in_any_order_is_the_same(schedule: DataSchedule, random) -> None:
    """What makes the number of processes and the step of a restart irrelevant."""
    whole = np.stack(SelectionMap(schedule, 3).select(np.arange(schedule.rows)), axis=1)
    again = SelectionMap(schedule, 3)
    indices = np.array([random.randrange(schedule.rows) for _ in range(20)])
    assert (np.stack(again.select(indices), axis=1) == whole[indices]).all()
    assert again[int(indices[0])] == tuple(whole[indices[0]])
    with pytest.raises(IndexError):
        again.select(np.array([schedule.rows]))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2))
def test_presets_on_any_grid_use_the_same_rows(
    data: st.DataObject, ppl: int, pd: int, seed: int
) -> None:
    axes = AxesConfig(ppl, pd)
    counts = st.lists(st.integers(0, 90), min_size=ppl * pd, max_size=ppl * pd)
    quadrant_rows = dict(zip(axes.quadrants, data.draw(counts.filter(any)), strict=True))
    steps = data.draw(st.none() | st.integers(1, -(-sum(quadrant_rows.values()) // 8)))
    reference = None
    for name in PRESETS:
        curriculum = expand_curriculum(CurriculumConfig(preset=name), axes)
        schedule = resolve_curriculum(
            curriculum, quadrant_rows, batch_size=8, sequence_length=8, steps=steps
        )
        rows = selected(SelectionMap(schedule, seed))[0]
        rows = rows[np.lexsort(rows.T)]
        assert len(np.unique(rows, axis=0)) == len(rows) == schedule.epoch_rows
        reference = rows if reference is None else reference
        np.testing.assert_array_equal(rows, reference, err_msg=name)


@pytest.mark.parametrize("steps", [None, 200])
def test_every_curriculum_uses_the_same_rows(steps: int | None) -> None:
    sets = {name: selected(preset_map(name, QUADRANT_ROWS, steps))[0] for name in PRESETS}
    reference = np.unique(sets["random"], axis=0)
    assert len(reference) == (sum(QUADRANT_ROWS.values()) if steps is None else 200 * 8)
    for name, pairs in sets.items():
        assert (np.unique(pairs, axis=0) == reference).all(), name
    orders = {pairs.tobytes() for pairs in sets.values()}
    assert len(orders) == len(PRESETS)


def test_epochs_and_seeds_shuffle_whole_quadrants() -> None:
    """The first half of a quadrant's rows is half another one in the next epoch."""
    curriculum = expand_curriculum(CurriculumConfig(preset="frame", epochs=2), AxesConfig())
    schedule = resolve_curriculum(curriculum, QUADRANT_ROWS, batch_size=8, sequence_length=8)
    halves = []
    for seed in (0, 1):
        for epoch in selected(SelectionMap(schedule, seed)):
            rows = epoch[epoch[:, 0] == 2, 1]
            halves.append(set(rows[: len(rows) // 2].tolist()))
    for a, b in combinations(halves, 2):
        assert 0.4 < len(a & b) / len(a) < 0.6


def test_a_short_run_is_mixed_finely_and_without_a_pattern() -> None:
    selection = preset_map("pdpc", QUADRANT_ROWS)
    for start in range(0, sum(QUADRANT_ROWS.values()) - 256, 128):
        asked = selection.schedule.mixture(start, start + 256)
        assert np.abs(selection.mixture(start, start + 256) - asked).max() < 0.07
    quadrants = selected(preset_map("random", QUADRANT_ROWS))[0, :, 0]
    blocks = [tuple(quadrants[start : start + 64]) for start in range(0, 3840, 64)]
    agreement = [np.mean(np.equal(a, b)) for a, b in combinations(blocks, 2)]
    assert max(agreement) < 0.6 and 0.2 < np.mean(agreement) < 0.3


@pytest.mark.slow
def test_a_billion_rows_take_few_bytes_and_stay_exact() -> None:
    rows = {quadrant: 250_000_000 + 17 * c for c, quadrant in enumerate(("Q1", "Q2", "Q3", "Q4"))}
    selection = preset_map("frame", rows)
    assert selection.edges.nbytes + selection.counts.nbytes < 100e6
    assert (selection.counts[-1] == list(rows.values())).all()
    assert (np.diff(selection.counts, axis=0) >= 0).all()
    assert (selection.counts.sum(1) == selection.edges).all()
    asked = selection.schedule.cumulative(selection.edges)
    assert np.abs(asked - selection.counts).max() < 2
    quadrants, _ = selection.select(np.arange(500_000_000, 500_100_000))  # Q4 -> Q1
    assert set(np.unique(quadrants)) == {0, 3}


@pytest.mark.slow
def test_batches_of_a_billion_rows_are_selected_fast() -> None:
    """At least 100k selections a second of processor time, in batches, making the map included."""
    started = time.process_time()
    selection = preset_map("folded", dict.fromkeys(("Q1", "Q2", "Q3", "Q4"), 250_000_000))
    for batch in range(2000):
        selection.select(np.arange(256) + 999_000 * 256 + batch * 256)
    assert 2000 * 256 / (time.process_time() - started) > 100_000


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**63 - 1))
def test_permute_is_a_bijection(size: int, name: int) -> None:
    indices = np.arange(size)
    key = permutation_keys(name, np.zeros(size, np.int64))
    assert (np.sort(permute(indices, np.full(size, size), key)) == indices).all()


@pytest.mark.parametrize(("size", "followed"), [(4, (0, 1, 2)), (16, (0, 1)), (64, (3, 11))])
def test_permute_shows_no_preference(size: int, followed: tuple[int, ...]) -> None:
    """Where a few indices go together, over many keys, against the uniform distribution."""
    draws, sizes = 200_000, np.full(200_000, size)
    key = permutation_keys(0, np.arange(draws))
    places = [permute(np.full(draws, index), sizes, key) for index in followed]
    counts = np.bincount(
        np.ravel_multi_index(places, (size,) * len(followed)), minlength=size ** len(followed)
    )
    possible = math.perm(size, len(followed))
    assert (counts > 0).sum() <= possible
    expected = draws / possible
    missed = size ** len(followed) - possible  # two indices in one place: never
    chi_squared = ((counts - expected) ** 2 / expected).sum() - missed * expected
    freedom = possible - 1
    assert abs(chi_squared - freedom) < 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("steps", [None, 30])
def test_another_shuffle_is_another_order_of_the_same_rows(steps: int | None) -> None:
    """Of those in use too, where a run does not reach all of them."""
    counts = {"Q1": 130, "Q2": 90, "Q3": 110, "Q4": 70}
    one = preset_map("random", counts, steps)
    maps = [one, SelectionMap(one.schedule, one.seed, 1), SelectionMap(one.schedule, one.seed, 2)]
    orders = [
        list(zip(*(a.tolist() for a in m.select(np.arange(len(m)))), strict=True)) for m in maps
    ]
    assert len({tuple(order) for order in orders}) == 3
    assert {tuple(sorted(order)) for order in orders} == {tuple(sorted(orders[0]))}
    assert len(set(orders[0])) == len(one)
    # No row keeps its place more often than chance would have it.
    for order in orders[1:]:
        assert sum(a == b for a, b in zip(orders[0], order, strict=True)) < len(one) / 20


@settings(max_examples=80, deadline=None)
@given(schedules(), st.integers(0, 3), st.integers(0, 2))
def test_places_lead_back(schedule: DataSchedule, seed: int, shuffle: int) -> None:
    selection = SelectionMap(schedule, seed, shuffle)
    quadrants, rows = selection.select(np.arange(len(selection)))
    epoch_of = np.arange(len(selection)) // schedule.epoch_rows
    for epoch in range(schedule.epochs):
        for quadrant, available in enumerate(schedule.available):
            found = selection.inverse(quadrant, np.arange(available), epoch)
            wanted = np.full(available, -1)
            mine = np.flatnonzero((quadrants == quadrant) & (epoch_of == epoch))
            wanted[rows[mine]] = mine
            np.testing.assert_array_equal(found, wanted)
