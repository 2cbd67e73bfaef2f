"""The ordered table of phases: what is complete, what is stale, what to run. Knows all subpackages.

A phase is one or more units (`reference` is three, `pretrain` one a curriculum). A unit's marker
`RUN/<unit>.json` holds the settings it was started under, a fingerprint of them and of the units it
reads from, and whether it is complete. A marker that does not match the config is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from frame_jax.config import RunConfig
from frame_jax.config_file import lookup, settings_of
from frame_jax.errors import UserError
from frame_jax.run_directory import RunDirectory, discard, read_json, remove, write_json

PHASES = ("tokenize", "reference", "score", "partition", "pretrain", "evaluate", "report")

REFERENCES = ("weak", "strong")


@dataclasses.dataclass(frozen=True)
class Unit:
    """A piece of work with one completion marker.

    Attributes:
        name: Name of the marker, e.g. `pretrain-frame`.
        phase: The phase it belongs to.
        settings: Dotted config keys its outputs depend on.
        needs: Units whose outputs it reads.
        run: `module:function`, called with the config, the run directory and `arguments`.
        arguments: Further arguments of the function.
        outputs: What `--redo` removes, relative to the run directory.
    """

    name: str
    phase: str
    settings: tuple[str, ...]
    needs: tuple[str, ...]
    run: str
    arguments: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()


def units(config: RunConfig) -> list[Unit]:
    """All units of a run, in the order in which they run."""
    arms = tuple(config.curricula)
    table = [
        Unit(
            "tokenize",
            "tokenize",
            ("corpus", "tokenizer", "seed"),
            (),
            "corpus.tokenize:run",
            outputs=("tokens", "tokenizer"),
        ),
    ]
    imported = [name for name in REFERENCES if getattr(config.reference, name).checkpoint]
    trained = [name for name in REFERENCES if name not in imported]
    if trained:
        table.append(
            Unit(
                "reference-rows",
                "reference",
                ("reference.rows", "seed"),
                ("tokenize",),
                "quadrants.rows:write_reference_rows",
                outputs=("reference/rows",),
            )
        )
    for name in trained:
        table.append(
            Unit(
                f"reference-{name}",
                "reference",
                (f"reference.{name}", "seed"),
                ("reference-rows",),
                "training.runs:train_reference",
                (name,),
                (f"reference/{name}",),
            )
        )
    table.append(
        Unit(
            "score",
            "score",
            ("scoring", *(f"reference.{name}.checkpoint" for name in imported)),
            ("tokenize", *(f"reference-{name}" for name in trained)),
            "scoring.score:run",
            outputs=("scores",),
        )
    )
    table.append(
        Unit(
            "partition",
            "partition",
            ("partition", "scoring.ppl_model", "seed"),
            ("score",),
            "quadrants.partition:run",
            outputs=("quadrants",),
        )
    )
    for name in arms:
        table.append(
            Unit(
                f"pretrain-{name}",
                "pretrain",
                ("pretrain", f"curricula.{name}", "seed"),
                ("partition",),
                "training.runs:pretrain",
                (name,),
                (f"pretrain/{name}",),
            )
        )
    for name in arms:
        table.append(
            Unit(
                f"evaluate-{name}",
                "evaluate",
                ("evaluation", "scoring"),
                (f"pretrain-{name}",),
                "evaluation.held_out:run",
                (name,),
                (f"evaluation/{name}.json", f"evaluation/{name}"),
            )
        )
    evaluations = tuple(f"evaluate-{name}" for name in arms)
    table.append(
        Unit("report", "report", (), evaluations, "report.report:run", outputs=("report",))
    )
    return table


def selected(table: Sequence[Unit], until: str | None) -> list[Unit]:
    """The units of all phases up to and including `until` (None: all)."""
    last = len(PHASES) if until is None else PHASES.index(until) + 1
    return [unit for unit in table if unit.phase in PHASES[:last]]


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
        inputs = {name: found[name].fingerprint for name in unit.needs}
        if not unit.needs:
            inputs["corpus files"] = corpus_signature
        found[unit.name] = Expected(settings, inputs)
    return found


def sources(table: Sequence[Unit], left: Sequence[Unit]) -> list[str]:
    """Names of the finished units from which, in one step or more, the units `left` are made."""
    by_name = {unit.name: unit for unit in table}
    found: set[str] = set()
    pending = [name for unit in left for name in unit.needs]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending.extend(by_name[name].needs)
    return sorted(found - {unit.name for unit in left})


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


def redo(directory: RunDirectory, table: Sequence[Unit], phase: str) -> list[str]:
    """Removes the outputs of a phase (or of one unit) and of everything made from them.

    A marker guards outputs against other settings, so it goes after them, and first from what was
    made last. Outputs only get a temporary name, at once: `remove_temporaries` does the rest.

    Returns:
        Names of the units removed.
    """
    doomed = [unit.name for unit in table if phase in (unit.phase, unit.name)]
    for unit in table:
        if set(unit.needs) & set(doomed) and unit.name not in doomed:
            doomed.append(unit.name)
    for unit in reversed(table):
        if unit.name in doomed:
            for output in unit.outputs:
                discard(directory.root / output)
            remove(directory.marker(unit.name))
    return doomed


def load_function(unit: Unit) -> Callable[..., dict[str, Any]]:
    """Imports a unit's function only when it runs: a finished run must not wait for JAX."""
    module, function = unit.run.split(":")
    return getattr(importlib.import_module(f"frame_jax.{module}"), function)


def run_unit(config: RunConfig, directory: RunDirectory, unit: Unit, expected: Expected) -> None:
    """Runs one unit on this process, together with the others, and marks it complete."""
    from frame_jax import integrity
    from frame_jax.parallel import processes

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
    return read_json(Path(directory.marker(unit)))["fingerprint"]
