"""Phase steps that an earlier config had: found on disk, so that a redo removes them with the
others."""

from __future__ import annotations

from collections.abc import Sequence

from frame_jax.config.run import Trial
from frame_jax.run import phases
from frame_jax.run.directory import RunDirectory
from frame_jax.run.phases import PhaseStep


def with_stale_steps(directory: RunDirectory, table: Sequence[PhaseStep]) -> list[PhaseStep]:
    """A run's phase steps, and those on disk of arms and models that its config no longer names.

    In the order in which they run.
    """
    names = {path.stem for path in directory.root.glob("*.json")}
    ours = ("pretrain-", "evaluate-")
    trials = {name.split("-", 1)[1] for name in names if name.startswith(ours)}
    trials |= {path.name for path in directory.pretrain("any").parent.glob("*") if path.is_dir()}
    trials |= {path.stem for path in directory.evaluation("any").parent.glob("*.json")}
    possible = [
        phases.REFERENCE_ROWS,
        *map(phases.reference_step, phases.REFERENCES),
        *(phases.pretrain_step(Trial(name, arm=name, seed=0)) for name in sorted(trials)),
        *map(phases.evaluate_step, sorted(trials)),
    ]
    current = {phase_step.name for phase_step in table}
    left = [
        phase_step
        for phase_step in possible
        if phase_step.name not in current
        and any(
            path.exists()
            for path in (
                directory.marker(phase_step.name),
                *(directory.root / output for output in phase_step.outputs),
            )
        )
    ]
    return sorted([*left, *table], key=lambda phase_step: phases.PHASES.index(phase_step.phase))
