"""Random curricula for the property tests."""

from typing import get_args

from hypothesis import strategies as st

from frame_jax.config.curriculum import CurriculumConfig, Preset, StageConfig
from frame_jax.config.quadrants import AxesConfig
from frame_jax.curriculum.presets import expand_curriculum
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.curriculum.stages import DataSchedule, resolve_curriculum

PRESETS: tuple[str, ...] = get_args(Preset)


@st.composite
def schedules(draw: st.DrawFn) -> DataSchedule:
    """Any stages, lengths that can be filled, transitions, folds, epochs and run lengths."""
    quadrants = [f"Q{c + 1}" for c in range(draw(st.integers(1, 5)))]
    stage_count = draw(st.integers(1, 5))
    uses = draw(
        st.lists(
            st.sets(st.sampled_from(quadrants), min_size=1),
            min_size=stage_count,
            max_size=stage_count,
        )
    )
    uses[0] |= set(quadrants) - set().union(*uses)
    # Drawing how many rows of each quadrant each stage has makes lengths that can be filled.
    rows = [{quadrant: draw(st.integers(0, 150)) for quadrant in sorted(use)} for use in uses]
    quadrant_rows = {quadrant: sum(r.get(quadrant, 0) for r in rows) for quadrant in quadrants}
    if sum(quadrant_rows.values()) < 30:
        rows[0][min(uses[0])] += 30
        quadrant_rows[min(uses[0])] += 30
    total = sum(quadrant_rows.values())
    with_lengths = draw(st.booleans()) and all(sum(r.values()) > 0 for r in rows)
    stages = [
        StageConfig(
            {quadrant: draw(st.floats(0.01, 10)) for quadrant in sorted(use)},
            fraction=sum(r.values()) / total if with_lengths else None,
        )
        for use, r in zip(uses, rows, strict=True)
    ]
    transition = draw(st.sampled_from(["hard", "sigmoid"]))
    curriculum = CurriculumConfig(
        stages=stages,
        transition=transition,
        width=draw(st.floats(1e-4, 1)) if transition == "sigmoid" else None,
        folds=draw(st.integers(1, 3)),
        epochs=draw(st.integers(1, 3)),
    )
    batch_size = draw(st.integers(1, 16))
    steps = None
    if not with_lengths and draw(st.booleans()):
        longest = total * curriculum.epochs // batch_size
        steps = draw(st.integers(-(-curriculum.epochs // batch_size), max(1, longest)))
    return resolve_curriculum(
        expand_curriculum(curriculum, AxesConfig()),
        quadrant_rows,
        batch_size=batch_size,
        sequence_length=8,
        steps=steps,
    )


def preset_map(name: str, quadrant_rows: dict[str, int], steps: int | None = None) -> SelectionMap:
    curriculum = expand_curriculum(CurriculumConfig(preset=name), AxesConfig())
    schedule = resolve_curriculum(
        curriculum, quadrant_rows, batch_size=8, sequence_length=8, steps=steps
    )
    return SelectionMap(schedule, seed=5, shuffle=curriculum.shuffle)
