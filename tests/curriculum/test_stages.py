"""Stages: lengths in any unit, the method's transition weights, and asks that cannot be met."""

import math
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frame_jax.config.curriculum import CurriculumConfig, StageConfig
from frame_jax.config.file import load
from frame_jax.config.quadrants import AxesConfig
from frame_jax.curriculum.allotment import allot_rows, split_proportionally
from frame_jax.curriculum.presets import expand_curriculum, preset_stages
from frame_jax.curriculum.stages import DataSchedule, resolve_curriculum, shuffled_schedule
from frame_jax.errors import UserError
from tests.curriculum.orders import PRESETS

QUADRANT_ROWS = {"Q1": 1000, "Q2": 1000, "Q3": 1000, "Q4": 1000}


def schedule_of(*stages: StageConfig, **settings) -> DataSchedule:
    curriculum = expand_curriculum(CurriculumConfig(stages=list(stages), **settings), AxesConfig())
    return resolve_curriculum(curriculum, QUADRANT_ROWS, batch_size=10, sequence_length=64)


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("frame", ["Q3", "Q4", "Q1", "Q2"]),
        ("random", ["Q1+Q2+Q3+Q4"]),
        ("ppl_descending", ["Q3+Q4", "Q1+Q2"]),
        ("ppl_ascending", ["Q1+Q2", "Q3+Q4"]),
        ("pd_ascending", ["Q1+Q3", "Q2+Q4"]),
        ("pd_descending", ["Q2+Q4", "Q1+Q3"]),
        ("q3_q1_q4_q2", ["Q3", "Q1", "Q4", "Q2"]),
        ("reverse", ["Q2", "Q1", "Q4", "Q3"]),
        ("pdpc", ["Q1+Q3", "Q2+Q4"]),
        ("sawtooth", ["Q3", "Q4", "Q1", "Q2"]),
        ("random_again", ["Q1+Q2+Q3+Q4"]),
        (
            "there_and_back",
            ["Q3", "Q4", "Q1", "Q2", "Q1", "Q4", "Q3", "Q4", "Q1", "Q2"],
        ),
    ],
)
def test_presets_on_four_quadrants(name: str, order: list[str]) -> None:
    stages = expand_curriculum(CurriculumConfig(preset=name), AxesConfig()).stages
    assert ["+".join(stage.weights) for stage in stages] == order


# Each preset as a sort: quadrants whose key is equal share a stage, stages come with rising keys.
ORDER = {
    "frame": lambda p, d: (-p, d),
    "random": lambda p, d: 0,
    "ppl_descending": lambda p, d: -p,
    "ppl_ascending": lambda p, d: p,
    "pd_ascending": lambda p, d: d,
    "pd_descending": lambda p, d: -d,
    "q3_q1_q4_q2": lambda p, d: (d, -p),
    "reverse": lambda p, d: (p, -d),
    "pdpc": lambda p, d: d,
    "folded": lambda p, d: (-p, d),
    "sawtooth": lambda p, d: (-p, d),
    "random_again": lambda p, d: 0,
}


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(ORDER)), st.integers(1, 6), st.integers(1, 6))
def test_presets_on_any_grid_are_sorts_by_the_bins(name: str, ppl: int, pd: int) -> None:
    axes = AxesConfig(ppl, pd)
    where = {axes.quadrant_name(p, d): (p, d) for p in range(ppl) for d in range(pd)}
    assert len(where) == ppl * pd
    stages = [
        stage.weights for stage in expand_curriculum(CurriculumConfig(preset=name), axes).stages
    ]
    keys = [{ORDER[name](*where[quadrant]) for quadrant in stage} for stage in stages]
    assert all(len(key) == 1 for key in keys)
    assert [key.pop() for key in keys] == sorted({ORDER[name](*bins) for bins in where.values()})
    assert sorted(quadrant for stage in stages for quadrant in stage) == sorted(where)
    assert {weight for stage in stages for weight in stage.values()} == {1.0}


def test_every_preset_is_tested() -> None:
    assert {*ORDER, "there_and_back"} == set(PRESETS) == set(preset_stages(AxesConfig()))
    with pytest.raises(UserError, match="preset"):
        load(Path("configs/quickstart.yaml"), "--curricula.x.preset=q2_first")


def test_folded_passes_through_the_order_with_equal_shares() -> None:
    schedule = resolve_curriculum(
        expand_curriculum(CurriculumConfig(preset="folded", folds=3), AxesConfig()),
        QUADRANT_ROWS,
        batch_size=10,
        sequence_length=64,
    )
    assert [stage.name[:2] for stage in schedule.stages] == ["Q3", "Q4", "Q1", "Q2"] * 3
    assert {stage.stop - stage.start for stage in schedule.stages} == {333, 334}


def test_lengths_in_any_unit_and_one_stage_takes_the_rest() -> None:
    q3, q4 = {"Q3": 1.0, "Q1": 1.0}, {"Q4": 1.0, "Q2": 1.0}
    by_rest = schedule_of(StageConfig(q3), StageConfig(q4, steps=200))
    for given_length in ({"fraction": 0.5}, {"tokens": 2000 * 64}, {"steps": 200}):
        schedule = schedule_of(StageConfig(q3, **given_length), StageConfig(q4, fraction=0.5))
        assert [stage.stop for stage in schedule.stages] == [2000, 4000]
        assert schedule == by_rest


def test_weights_shape_stages_that_share_quadrants() -> None:
    """Rates 3:1 and 1:3 over the same two quadrants come out as asked when the rows allow it."""
    schedule = schedule_of(
        StageConfig({"Q1": 3, "Q2": 1}, fraction=0.25),
        StageConfig({"Q1": 1, "Q2": 3}, fraction=0.25),
        StageConfig({"Q3": 1, "Q4": 1}, fraction=0.5),
        transition="hard",
    )
    assert [stage.quadrant_rows for stage in schedule.stages] == [
        (750, 250, 0, 0),
        (250, 750, 0, 0),
        (0, 0, 1000, 1000),
    ]


def test_transition_is_the_logistic_of_the_method() -> None:
    """w_j(p) = s(k(p - b_{j-1})) - s(k(p - b_j)), 12% and 88% at the ends of the width."""
    width, rows = 0.04, 4_000_000
    frame = expand_curriculum(CurriculumConfig(preset="frame", width=width), AxesConfig())
    schedule = resolve_curriculum(
        frame,
        {quadrant: rows // 4 for quadrant in QUADRANT_ROWS},
        batch_size=10,
        sequence_length=64,
    )
    progress = np.linspace(0, 1, 2001)
    k = 2 * math.log(0.88 / 0.12) / width
    logistic = 1 / (1 + np.exp(-k * (progress[:, None] - np.array([0.25, 0.5, 0.75]))))
    ones, zeros = np.ones((len(progress), 1)), np.zeros((len(progress), 1))
    expected = -np.diff(np.concatenate([ones, logistic, zeros], axis=1), axis=1)
    edges = np.stack([progress * rows - 2, progress * rows + 2], axis=1)
    asked = np.diff(schedule.cumulative(edges.ravel())[:, [2, 3, 0, 1]], axis=0)[::2] / 4
    np.testing.assert_allclose(asked, expected, atol=1e-4)
    before, after = (schedule.mixture(at - 10, at + 10) for at in (920_000, 1_080_000))
    np.testing.assert_allclose([before[2], before[3]], [0.88, 0.12], atol=1e-4)
    np.testing.assert_allclose([after[2], after[3]], [0.12, 0.88], atol=1e-4)


@pytest.mark.parametrize("width", [1e-6, 0.01, 0.3, 1.0])
def test_stages_keep_their_rows_under_any_width(width: float) -> None:
    curriculum = expand_curriculum(CurriculumConfig(preset="frame", width=width), AxesConfig())
    quadrant_rows = {"Q1": 10, "Q2": 30_000, "Q3": 2_000, "Q4": 500}
    schedule = resolve_curriculum(curriculum, quadrant_rows, batch_size=8, sequence_length=8)
    asked = schedule.cumulative(np.arange(schedule.epoch_rows + 1))
    np.testing.assert_allclose(asked[-1], list(quadrant_rows.values()), rtol=1e-9)
    assert (np.diff(asked, axis=0) > -1e-9).all()


def test_stage_at_and_boundaries_follow_the_run() -> None:
    curriculum = expand_curriculum(CurriculumConfig(preset="frame", epochs=2), AxesConfig())
    schedule = resolve_curriculum(curriculum, QUADRANT_ROWS, batch_size=10, sequence_length=64)
    assert schedule.boundaries.tolist() == [1000 * i for i in range(1, 9)]
    rows = (0, 999, 1000, 3999, 4000, 7999)
    assert [schedule.stage_at(row) for row in rows] == [0, 0, 1, 3, 0, 3]
    assert (schedule.rows, schedule.steps(10), schedule.steps(33)) == (8000, 800, 243)


def test_reference_order_takes_as_many_epochs_as_its_steps_need() -> None:
    schedule = shuffled_schedule({"reference": 100}, batch_size=16, steps=20)
    assert (schedule.epochs, schedule.rows) == (4, 320)
    assert shuffled_schedule({"reference": 100}, batch_size=16).steps(16) == 7


def subsets(count: int) -> list[tuple[int, ...]]:
    return list(chain.from_iterable(combinations(range(count), n) for n in range(1, count + 1)))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_lengths_are_met_exactly_whenever_they_can_be(data: st.DataObject) -> None:
    """Against Hall's condition: no set of stages asks for more than its quadrants hold."""
    stages, quadrants = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    numbers = st.lists(
        st.sampled_from([0.0, 0.0, 0.2, 1.0, 5.0]), min_size=quadrants, max_size=quadrants
    )
    weights = np.array([data.draw(numbers) for _ in range(stages)])
    weights[weights.sum(1) == 0, 0] = 1.0
    columns = np.array(
        data.draw(st.lists(st.integers(1, 40), min_size=quadrants, max_size=quadrants))
    )
    shares = np.array(data.draw(st.lists(st.integers(1, 9), min_size=stages, max_size=stages)))
    lengths = split_proportionally(int(columns.sum()), shares)
    possible = all(
        lengths[list(chosen)].sum() <= columns[(weights[list(chosen)] > 0).any(0)].sum()
        for chosen in subsets(stages)
    )
    names = [f"stage {j}" for j in range(stages)]
    quadrant_names = tuple(f"Q{c}" for c in range(quadrants))
    try:
        rows = allot_rows(weights, columns, lengths, names, quadrant_names)
    except UserError as error:
        assert not possible and "hold" in str(error)
        return
    assert possible
    assert (rows >= 0).all() and (rows[weights == 0] == 0).all()
    assert (rows.sum(0) == columns).all() and (rows.sum(1) == lengths).all()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            [StageConfig({"Q3": 1}, fraction=0.5), StageConfig({"Q1": 1, "Q2": 1, "Q4": 1})],
            "stage Q3 asks for 2,000 rows of quadrants that hold 1,000 (Q3 1,000)",
        ),
        ([StageConfig({"Q1": 1, "Q2": 1, "Q3": 1})], "no stage uses Q4"),
        ([StageConfig({"Q5": 1})], "no quadrant 'Q5'; there are Q1, Q2, Q3, Q4"),
        (
            [StageConfig({"Q1": 1, "Q2": 1}, steps=200), StageConfig({"Q3": 1, "Q4": 1}, steps=9)],
            "ask for 2,090 rows",
        ),
        (
            [StageConfig({"Q1": 1, "Q2": 1}, steps=400), StageConfig({"Q3": 1, "Q4": 1})],
            "takes the rest",
        ),
    ],
)
def test_impossible_stages_are_named(stages: list[StageConfig], message: str) -> None:
    with pytest.raises(UserError) as error:
        schedule_of(*stages)
    assert message in str(error.value)


def test_a_run_longer_than_its_rows_is_refused_with_the_epochs_it_needs() -> None:
    curriculum = expand_curriculum(CurriculumConfig(preset="frame"), AxesConfig())
    with pytest.raises(UserError, match="epochs to 3"):
        resolve_curriculum(curriculum, QUADRANT_ROWS, batch_size=10, sequence_length=64, steps=1000)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CurriculumConfig(),
        lambda: CurriculumConfig(preset="frame", stages=[StageConfig({"Q1": 1})]),
        lambda: CurriculumConfig(preset="frame", transition="hard", width=0.1),
        lambda: CurriculumConfig(preset="frame", width=0.0),
        lambda: CurriculumConfig(preset="frame", epochs=0),
        lambda: CurriculumConfig(
            stages=[StageConfig({"Q1": 1}), StageConfig({"Q2": 1})] * 2
            + [StageConfig({"Q3": 1}, steps=3)]
        ),
        lambda: StageConfig({"Q1": -1.0}),
        lambda: StageConfig({"Q1": 0.0}),
        lambda: StageConfig({"Q1": 1.0}, fraction=0.5, steps=3),
        lambda: StageConfig({"Q1": 1.0}, fraction=1.5),
    ],
)
def test_contradictory_curricula_are_refused(make) -> None:
    with pytest.raises(UserError):
        make()


def test_there_and_back_ends_where_frame_ends_and_gives_each_visit_its_share() -> None:
    axes = AxesConfig()
    curriculum = expand_curriculum(CurriculumConfig(preset="there_and_back"), axes)
    schedule = resolve_curriculum(curriculum, QUADRANT_ROWS, batch_size=10, sequence_length=64)
    names, rows = [s.name for s in schedule.stages], [s.stop - s.start for s in schedule.stages]
    assert names[0] == "Q3" and names[-1] == "Q2"
    for quadrant, visits in {"Q1": 3, "Q2": 2, "Q3": 2, "Q4": 3}.items():
        of_cell = [count for name, count in zip(names, rows, strict=True) if name == quadrant]
        assert len(of_cell) == visits and sum(of_cell) == 1000
        assert max(of_cell) - min(of_cell) <= 1
