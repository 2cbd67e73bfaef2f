"""Completion markers: which phase steps are complete or out of date, and running one.

A phase step's marker `RUN/<phase step>.json` holds the settings it was started under, a fingerprint
of them and of the phase steps it reads from, and whether it is complete. One that does not match
the config is refused.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

from frame_jax.config.run import RunConfig, Trial
from frame_jax.config.settings import flatten_settings, setting_at
from frame_jax.errors import UserError
from frame_jax.run import bucket, phases
from frame_jax.run.directory import (
    RunDirectory,
    mark_for_removal,
    read_dataclass,
    remove,
    write_dataclass,
)
from frame_jax.run.phases import PhaseStep, load_function

CORPUS_FILES = "corpus files"  # among the inputs: a signature of the files of all sources
INITIAL_WEIGHTS = "initial weights"  # likewise: their digest, see `training/initial_digest.py`
FILES = (CORPUS_FILES, INITIAL_WEIGHTS)


@dataclasses.dataclass(frozen=True)
class Marker:
    """What `RUN/<phase step>.json` holds; one that lacks a field is as one of no settings.

    Attributes:
        fingerprint: Of settings and inputs.
        settings: Flattened, under which it was started.
        inputs: Fingerprints of the phase steps that it reads from, by name.
        seconds: That it took; 0 until it is complete.
        summary: What its function returned.
    """

    complete: bool = False
    fingerprint: str = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    inputs: dict[str, str] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)


def expected_markers(
    config: RunConfig,
    table: Sequence[PhaseStep],
    corpus_signature: str,
    initial_weights: str | None = None,
) -> dict[str, Marker]:
    """Computes the marker that each phase step begins with under this config and corpus.

    `initial_weights` is the digest of what the target starts from; None for random weights.
    """
    found: dict[str, Marker] = {}
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
            inputs[CORPUS_FILES] = corpus_signature
        if phase_step.phase == "pretrain" and initial_weights is not None:
            inputs[INITIAL_WEIGHTS] = initial_weights
        text = json.dumps([settings, inputs], sort_keys=True, ensure_ascii=False)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        found[phase_step.name] = Marker(False, fingerprint, settings, inputs)
    return found


def read_marker(directory: RunDirectory, phase_step: str) -> Marker | None:
    """The marker of a phase step; None for one that has not begun."""
    path = directory.marker(phase_step)
    return read_dataclass(path, Marker) if path.exists() else None


def read_complete_marker(directory: RunDirectory, phase_step: str) -> Marker | None:
    """The marker of a phase step that has ended, under whatever settings; None for any other."""
    marker = read_marker(directory, phase_step)
    return marker if marker is not None and marker.complete else None


def is_complete(directory: RunDirectory, phase_step: PhaseStep, expected: Marker) -> bool:
    """Whether the phase step has finished under the settings of this run."""
    marker = read_complete_marker(directory, phase_step.name)
    return marker is not None and marker.fingerprint == expected.fingerprint


def changed_input(directory: RunDirectory, phase_step: str) -> str | None:
    """The phase step, among the inputs of `phase_step`, that was made anew since, if any."""
    marker = read_marker(directory, phase_step) or Marker()
    for name, fingerprint in marker.inputs.items():
        source = read_marker(directory, name) if name not in FILES else None
        if source is None:
            continue
        if source.fingerprint != fingerprint:
            return name
        if (deeper := changed_input(directory, name)) is not None:
            return deeper
    return None


def check_current(directory: RunDirectory, phase_step: PhaseStep, expected: Marker) -> None:
    """Refuses a phase step whose outputs were made under other settings or inputs.

    The report is the exception: it costs seconds and nothing is made from it, so a run with one
    more arm simply makes it again.

    Raises:
        UserError: naming each setting that changed, and the two ways on.
    """
    marker = read_marker(directory, phase_step.name)
    if marker is None or marker.fingerprint == expected.fingerprint or phase_step.phase == "report":
        return
    settings = marker.settings, expected.settings
    changed = []
    for key in sorted(settings[0].keys() | settings[1].keys()):
        # A release may add a setting, and null is a value.
        old, new = (repr(at[key]) if key in at else "no such setting" for at in settings)
        if old != new:
            changed.append(f"  {key}: {old} then, {new} now")
    changed += [
        f"  its input `{name}` has changed"
        for name, fingerprint in expected.inputs.items()
        if marker.inputs.get(name) != fingerprint
    ]
    # Nothing is made from the scores of a sample.
    again = phase_step.name if phase_step.phase == "score" else phase_step.phase
    raise UserError(
        f"{directory.marker(phase_step.name)}: {phase_step.phase} was run with other settings:\n"
        + "\n".join(changed)
        + "\nEither use a new run directory (--run_directory NEW), or repeat this phase and all "
        f"that follow from it here (--redo {again})."
    )


def downstream_names(
    table: Sequence[PhaseStep], everything: Sequence[PhaseStep], phase: str
) -> list[str]:
    """Names of a phase's steps (or of one step), and of all in `everything` made from them."""
    doomed = [each.name for each in table if phase in (each.phase, each.name)]
    for phase_step in everything:
        if set(phase_step.inputs) & set(doomed) and phase_step.name not in doomed:
            doomed.append(phase_step.name)
    return doomed


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

    def is_there(phase_step: PhaseStep) -> bool:
        outputs = (directory.root / output for output in phase_step.outputs)
        return any(path.exists() for path in (directory.marker(phase_step.name), *outputs))

    current = {phase_step.name for phase_step in table}
    left = [each for each in possible if each.name not in current and is_there(each)]
    return sorted([*left, *table], key=lambda phase_step: phases.PHASES.index(phase_step.phase))


def remove_outputs(directory: RunDirectory, table: Sequence[PhaseStep], phase: str) -> list[str]:
    """Removes the outputs of a phase (or of one phase step) and of everything made from them;
    returns the names of the phase steps.

    Arms that the config no longer names are removed where something that they were made from is.
    A marker guards outputs against other settings, so it goes after them, and first from what was
    made last. Outputs only get a temporary name, at once: `remove_temporaries` does the rest.
    """
    everything = with_stale_steps(directory, table)
    doomed = downstream_names(table, everything, phase)
    for phase_step in reversed(everything):
        if phase_step.name in doomed:
            for output in phase_step.outputs:
                if (copies := bucket.bucket_of(directory.root / output)) is not None:
                    copies.clear()
                mark_for_removal(directory.root / output)
            remove(directory.marker(phase_step.name))
    return doomed


def run_phase_step(
    config: RunConfig, directory: RunDirectory, phase_step: PhaseStep, expected: Marker
) -> None:
    """Runs one phase step together with the other processes, and marks it complete."""
    from frame_jax.parallel import processes
    from frame_jax.run import integrity

    path = directory.marker(phase_step.name)
    if processes.is_first():
        write_dataclass(path, expected)
    processes.barrier(f"{phase_step.name} begins")
    started = time.time()
    summary = load_function(phase_step)(config, directory, *phase_step.arguments)
    processes.barrier(f"{phase_step.name} is done")
    if processes.is_first():
        integrity.record_checksums(directory, phase_step.name, phase_step.outputs)
        seconds = round(time.time() - started, 1)
        write_dataclass(
            path, dataclasses.replace(expected, complete=True, seconds=seconds, summary=summary)
        )
    processes.barrier(f"{phase_step.name} is marked")


def read_fingerprint(directory: RunDirectory, phase_step: str) -> str:
    """The fingerprint under which a phase step was started: all its result depends on."""
    return read_dataclass(directory.marker(phase_step), Marker).fingerprint
