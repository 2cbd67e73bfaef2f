"""Completion markers: which phase steps are complete, which are stale, and running one.

A phase step's marker `RUN/<phase step>.json` holds the settings it was started under, a fingerprint
of them and of the phase steps it reads from, and whether it is complete. One that does not match
the config is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

from frame_jax.config.run import RunConfig
from frame_jax.config.settings import flatten_settings, setting_at
from frame_jax.errors import UserError
from frame_jax.run import bucket
from frame_jax.run.directory import RunDirectory, mark_for_removal, read_json, remove, write_json
from frame_jax.run.phases import PhaseStep, load_function
from frame_jax.run.stale_steps import with_stale_steps


@dataclasses.dataclass(frozen=True)
class ExpectedMarker:
    """What a phase step's marker must say: flattened settings, fingerprints of its inputs, and a
    hash."""

    settings: dict[str, Any]
    inputs: dict[str, str]

    @property
    def fingerprint(self) -> str:
        text = json.dumps([self.settings, self.inputs], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def expected_markers(
    config: RunConfig, table: Sequence[PhaseStep], corpus_signature: str
) -> dict[str, ExpectedMarker]:
    """What every marker must say under this config and corpus."""
    found: dict[str, ExpectedMarker] = {}
    for phase_step in table:
        settings = {
            key: value
            for name in phase_step.settings
            for key, value in flatten_settings(setting_at(config, name), name).items()
        }
        if phase_step.seed is not None:
            settings["seed"] = phase_step.seed
        inputs = {name: found[name].fingerprint for name in phase_step.inputs}
        if not phase_step.inputs:
            inputs["corpus files"] = corpus_signature
        found[phase_step.name] = ExpectedMarker(settings, inputs)
    return found


def read_marker(directory: RunDirectory, phase_step: PhaseStep) -> dict[str, Any] | None:
    path = directory.marker(phase_step.name)
    return read_json(path) if path.exists() else None


def is_complete(directory: RunDirectory, phase_step: PhaseStep, expected: ExpectedMarker) -> bool:
    """Whether the phase step has run to its end, under the settings of this run."""
    marker = read_marker(directory, phase_step)
    return (
        marker is not None and marker["complete"] and marker["fingerprint"] == expected.fingerprint
    )


def check_current(directory: RunDirectory, phase_step: PhaseStep, expected: ExpectedMarker) -> None:
    """Refuses a phase step whose outputs were made under other settings or inputs.

    The report is the exception: it costs seconds and nothing is made from it, so a run with one
    more arm simply makes it again.

    Raises:
        UserError: naming each setting that changed, and the two ways on.
    """
    marker = read_marker(directory, phase_step)
    if (
        marker is None
        or marker["fingerprint"] == expected.fingerprint
        or phase_step.phase == "report"
    ):
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
        f"{directory.marker(phase_step.name)}: {phase_step.phase} was run with other settings:\n"
        + "\n".join(changed)
        + "\nEither use a new run directory (--run_directory NEW), or repeat this phase and all "
        f"that follow from it here (--redo {phase_step.phase})."
    )


def downstream_names(
    table: Sequence[PhaseStep], everything: Sequence[PhaseStep], phase: str
) -> list[str]:
    """Names of a phase's phase steps (or of one phase step) in `table`, and of all in `everything`
    made from them."""
    doomed = [
        phase_step.name for phase_step in table if phase in (phase_step.phase, phase_step.name)
    ]
    for phase_step in everything:
        if set(phase_step.inputs) & set(doomed) and phase_step.name not in doomed:
            doomed.append(phase_step.name)
    return doomed


def remove_outputs(directory: RunDirectory, table: Sequence[PhaseStep], phase: str) -> list[str]:
    """Removes the outputs of a phase (or of one phase step) and of everything made from them.

    Arms that the config no longer names are removed where something that they were made from is.
    A marker guards outputs against other settings, so it goes after them, and first from what was
    made last. Outputs only get a temporary name, at once: `remove_temporaries` does the rest.

    Returns:
        Names of the phase steps removed.
    """
    everything = with_stale_steps(directory, table)
    doomed = downstream_names(table, everything, phase)
    for phase_step in reversed(everything):
        if phase_step.name in doomed:
            for output in phase_step.outputs:
                bucket.clear_copies(directory.root / output)
                mark_for_removal(directory.root / output)
            remove(directory.marker(phase_step.name))
    return doomed


def run_phase_step(
    config: RunConfig, directory: RunDirectory, phase_step: PhaseStep, expected: ExpectedMarker
) -> None:
    """Runs one phase step on this process, together with the others, and marks it complete."""
    from frame_jax.parallel import processes
    from frame_jax.run import integrity

    marker: dict[str, Any] = {
        "complete": False,
        "fingerprint": expected.fingerprint,
        "settings": expected.settings,
        "inputs": expected.inputs,
    }
    if processes.is_first():
        write_json(directory.marker(phase_step.name), marker)
    processes.barrier(f"{phase_step.name} begins")
    started = time.time()
    summary = load_function(phase_step)(config, directory, *phase_step.arguments)
    processes.barrier(f"{phase_step.name} is done")
    if processes.is_first():
        integrity.record_checksums(directory, phase_step.name, phase_step.outputs)
        marker |= {"complete": True, "seconds": round(time.time() - started, 1), "summary": summary}
        write_json(directory.marker(phase_step.name), marker)
    processes.barrier(f"{phase_step.name} is marked")


def read_fingerprint(directory: RunDirectory, phase_step: str) -> str:
    """The fingerprint a phase step was started under: identifies everything its result depends
    on."""
    return read_json(directory.marker(phase_step))["fingerprint"]
