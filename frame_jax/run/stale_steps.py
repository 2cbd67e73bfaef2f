"""Phase steps that an earlier config had: found on disk, so that a redo removes them with the
others."""

from __future__ import annotations

from collections.abc import Sequence

from frame_jax.config.run import Trial
from frame_jax.run import phases
from frame_jax.run.directory import RunDirectory, read_json
from frame_jax.run.phases import PhaseStep


def with_stale_steps(directory: RunDirectory, table: Sequence[PhaseStep]) -> list[PhaseStep]:
    """A run's phase steps, and those of arms and reference models that its config no longer names.

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
        if phase_step.name not in current and has_outputs(directory, phase_step)
    ]
    return sorted([*left, *table], key=lambda phase_step: phases.PHASES.index(phase_step.phase))


def has_outputs(directory: RunDirectory, phase_step: PhaseStep) -> bool:
    """Whether a phase step has left anything."""
    paths = [
        directory.marker(phase_step.name),
        *(directory.root / output for output in phase_step.outputs),
    ]
    return any(path.exists() for path in paths)


def changed_input(directory: RunDirectory, phase_step: str) -> str | None:
    """The phase step, among those that `phase_step` was made from, that has been made anew since;
    or None."""
    marker = directory.marker(phase_step)
    if not marker.exists():
        return None
    for name, fingerprint in read_json(marker)["inputs"].items():
        source = directory.marker(name)
        if name == "corpus files" or not source.exists():
            continue
        if read_json(source)["fingerprint"] != fingerprint:
            return name
        if (deeper := changed_input(directory, name)) is not None:
            return deeper
    return None
