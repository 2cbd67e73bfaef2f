"""Completion markers: which units are complete, which are stale, and running one.

A unit's marker `RUN/<unit>.json` holds the settings it was started under, a fingerprint of them and
of the units it reads from, and whether it is complete. One that does not match the config is
refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

from frame_jax.config.run import RunConfig
from frame_jax.config.settings import lookup, settings_of
from frame_jax.errors import UserError
from frame_jax.run import bucket
from frame_jax.run.directory import RunDirectory, discard, read_json, remove, write_json
from frame_jax.run.leftovers import with_leftovers
from frame_jax.run.phases import Unit, load_function


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a unit's marker must say: flattened settings, fingerprints of its inputs, and a hash."""

    settings: dict[str, Any]
    inputs: dict[str, str]

    @property
    def fingerprint(self) -> str:
        text = json.dumps([self.settings, self.inputs], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def expectations(
    config: RunConfig, table: Sequence[Unit], corpus_signature: str
) -> dict[str, Expected]:
    """What every marker must say under this config and corpus."""
    found: dict[str, Expected] = {}
    for unit in table:
        settings = {
            key: value
            for name in unit.settings
            for key, value in settings_of(lookup(config, name), name).items()
        }
        if unit.seed is not None:
            settings["seed"] = unit.seed
        inputs = {name: found[name].fingerprint for name in unit.needs}
        if not unit.needs:
            inputs["corpus files"] = corpus_signature
        found[unit.name] = Expected(settings, inputs)
    return found


def read_marker(directory: RunDirectory, unit: Unit) -> dict[str, Any] | None:
    path = directory.marker(unit.name)
    return read_json(path) if path.exists() else None


def is_complete(directory: RunDirectory, unit: Unit, expected: Expected) -> bool:
    """Whether the unit has run to its end, under the settings of this run."""
    marker = read_marker(directory, unit)
    return (
        marker is not None and marker["complete"] and marker["fingerprint"] == expected.fingerprint
    )


def check_current(directory: RunDirectory, unit: Unit, expected: Expected) -> None:
    """Refuses a unit whose outputs were made under other settings or inputs.

    The report is the exception: it costs seconds and nothing is made from it, so a run with one
    more arm simply makes it again.

    Raises:
        UserError: naming each setting that changed, and the two ways on.
    """
    marker = read_marker(directory, unit)
    if marker is None or marker["fingerprint"] == expected.fingerprint or unit.phase == "report":
        return
    settings = marker["settings"], expected.settings
    changed = []
    for key in sorted(settings[0].keys() | settings[1].keys()):
        # A release may add a setting, and null is a value.
        old, new = (repr(at[key]) if key in at else "no such setting" for at in settings)
        if old != new:
            changed.append(f"  {key}: {old} then, {new} now")
    changed += [
        f"  its input `{name}` has changed"
        for name, fingerprint in expected.inputs.items()
        if marker["inputs"].get(name) != fingerprint
    ]
    raise UserError(
        f"{directory.marker(unit.name)}: {unit.phase} was run with other settings:\n"
        + "\n".join(changed)
        + "\nEither use a new run directory (--run_directory NEW), or repeat this phase and all "
        f"that follow from it here (--redo {unit.phase})."
    )


def downstream(table: Sequence[Unit], everything: Sequence[Unit], phase: str) -> list[str]:
    """Names of a phase's units (or of one unit) in `table`, and of all in `everything` made from
    them."""
    doomed = [unit.name for unit in table if phase in (unit.phase, unit.name)]
    for unit in everything:
        if set(unit.needs) & set(doomed) and unit.name not in doomed:
            doomed.append(unit.name)
    return doomed


def redo(directory: RunDirectory, table: Sequence[Unit], phase: str) -> list[str]:
    """Removes the outputs of a phase (or of one unit) and of everything made from them.

    Arms that the config no longer names are removed where something that they were made from is.
    A marker guards outputs against other settings, so it goes after them, and first from what was
    made last. Outputs only get a temporary name, at once: `remove_temporaries` does the rest.

    Returns:
        Names of the units removed.
    """
    everything = with_leftovers(directory, table)
    doomed = downstream(table, everything, phase)
    for unit in reversed(everything):
        if unit.name in doomed:
            for output in unit.outputs:
                bucket.clear(directory.root / output)
                discard(directory.root / output)
            remove(directory.marker(unit.name))
    return doomed


def run_unit(config: RunConfig, directory: RunDirectory, unit: Unit, expected: Expected) -> None:
    """Runs one unit on this process, together with the others, and marks it complete."""
    from frame_jax.parallel import processes
    from frame_jax.run import integrity

    marker: dict[str, Any] = {
        "complete": False,
        "fingerprint": expected.fingerprint,
        "settings": expected.settings,
        "inputs": expected.inputs,
    }
    if processes.is_first():
        write_json(directory.marker(unit.name), marker)
    processes.barrier(f"{unit.name} begins")
    started = time.time()
    summary = load_function(unit)(config, directory, *unit.arguments)
    processes.barrier(f"{unit.name} is done")
    if processes.is_first():
        integrity.record(directory, unit.name, unit.outputs)
        marker |= {"complete": True, "seconds": round(time.time() - started, 1), "summary": summary}
        write_json(directory.marker(unit.name), marker)
    processes.barrier(f"{unit.name} is marked")


def fingerprint_of(directory: RunDirectory, unit: str) -> str:
    """The fingerprint a unit was started under: identifies everything its result depends on."""
    return read_json(directory.marker(unit))["fingerprint"]
