"""Units that an earlier config had: found on disk, so that a redo removes them with the others."""

from __future__ import annotations

from collections.abc import Sequence

from frame_jax.config.run import Trial
from frame_jax.run import phases
from frame_jax.run.directory import RunDirectory, read_json
from frame_jax.run.phases import Unit


def with_leftovers(directory: RunDirectory, table: Sequence[Unit]) -> list[Unit]:
    """A run's units, and those of arms and reference models that its config no longer names.

    In the order in which they run.
    """
    names = {path.stem for path in directory.root.glob("*.json")}
    ours = ("pretrain-", "evaluate-")
    trials = {name.split("-", 1)[1] for name in names if name.startswith(ours)}
    trials |= {path.name for path in directory.pretrain("any").parent.glob("*") if path.is_dir()}
    trials |= {path.stem for path in directory.evaluation("any").parent.glob("*.json")}
    possible = [
        phases.REFERENCE_ROWS,
        *map(phases.reference, phases.REFERENCES),
        *(phases.pretrain(Trial(name, arm=name, seed=0)) for name in sorted(trials)),
        *map(phases.evaluate, sorted(trials)),
    ]
    known = {unit.name for unit in table}
    left = [unit for unit in possible if unit.name not in known and on_disk(directory, unit)]
    return sorted([*left, *table], key=lambda unit: phases.PHASES.index(unit.phase))


def on_disk(directory: RunDirectory, unit: Unit) -> bool:
    """Whether a unit has left anything."""
    paths = [directory.marker(unit.name), *(directory.root / output for output in unit.outputs)]
    return any(path.exists() for path in paths)


def changed_input(directory: RunDirectory, unit: str) -> str | None:
    """The unit, among those that `unit` was made from, that has been made anew since; or None."""
    marker = directory.marker(unit)
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
