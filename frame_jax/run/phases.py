"""The ordered table of phases and their units: the one file that knows all subpackages, by name.

A phase is one or more units: `reference` is three, `pretrain` one a trial (an arm under a seed).
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any

from frame_jax.config.run import BASELINE, RunConfig, Trial

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
        seed: Takes the place of the run's among its settings; None for the run's own.
    """

    name: str
    phase: str
    settings: tuple[str, ...]
    needs: tuple[str, ...]
    run: str
    arguments: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    seed: int | None = None


def units(config: RunConfig) -> list[Unit]:
    """All units of a run, in the order in which they run."""
    imported = [name for name in REFERENCES if getattr(config.reference, name).checkpoint]
    trained = [name for name in REFERENCES if name not in imported]
    scored = [
        *([REFERENCE_ROWS] if trained else []),
        *(reference(name) for name in trained),
        score(imported, trained),
    ]
    return [
        TOKENIZE,
        *(scored if config.scoring.table is None else [SCORES_MADE_ELSEWHERE]),
        PARTITION,
        *(pretrain(trial) for trial in config.trials),
        *(evaluate(trial.name) for trial in config.trials),
        report(config),
    ]


TOKENIZE = Unit(
    "tokenize",
    phase="tokenize",
    settings=("corpus", "tokenizer", "seed"),
    needs=(),
    run="corpus.tokenize:run",
    outputs=("tokens", "tokenizer"),
)

REFERENCE_ROWS = Unit(
    "reference-rows",
    phase="reference",
    settings=("reference.rows", "seed"),
    needs=("tokenize",),
    run="quadrants.rows:write_reference_rows",
    outputs=("reference/rows",),
)


def reference(name: str) -> Unit:
    """The training of one reference model."""
    return Unit(
        f"reference-{name}",
        phase="reference",
        settings=(f"reference.{name}", "seed"),
        needs=("reference-rows",),
        run="training.runs:train_reference",
        arguments=(name,),
        outputs=(f"reference/{name}",),
    )


def score(imported: list[str], trained: list[str]) -> Unit:
    """Scoring under both reference models, of which some are imported and some trained here."""
    return Unit(
        "score",
        phase="score",
        settings=("scoring", *(f"reference.{name}.checkpoint" for name in imported)),
        needs=("tokenize", *(f"reference-{name}" for name in trained)),
        run="scoring.score:run",
        outputs=("scores",),
    )


SCORES_MADE_ELSEWHERE = Unit(
    "score",
    phase="score",
    settings=("scoring.table",),
    needs=("tokenize",),
    run="scoring.table:run",
    outputs=("scores",),
)

PARTITION = Unit(
    "partition",
    phase="partition",
    settings=("partition", "scoring.ppl_model", "seed"),
    needs=("score",),
    run="quadrants.partition:run",
    outputs=("quadrants",),
)


def pretrain(trial: Trial) -> Unit:
    """The training of one arm under one seed."""
    return Unit(
        f"pretrain-{trial.name}",
        phase="pretrain",
        settings=("pretrain", f"curricula.{trial.arm}", "seed"),
        needs=("partition",),
        run="training.runs:pretrain",
        arguments=(trial.name,),
        outputs=(f"pretrain/{trial.name}",),
        seed=trial.seed,
    )


def evaluate(trial: str) -> Unit:
    """The measurements on one trial."""
    return Unit(
        f"evaluate-{trial}",
        phase="evaluate",
        settings=("evaluation", "scoring"),
        needs=(f"pretrain-{trial}",),
        run="evaluation.held_out:run",
        arguments=(trial,),
        outputs=(f"evaluation/{trial}.json", f"evaluation/{trial}"),
    )


def report(config: RunConfig) -> Unit:
    """The report on all trials."""
    return Unit(
        "report",
        phase="report",
        settings=() if config.baseline == BASELINE else ("baseline",),
        needs=tuple(f"evaluate-{trial.name}" for trial in config.trials),
        run="report.report:run",
        outputs=("report",),
    )


def selected(table: Sequence[Unit], until: str | None) -> list[Unit]:
    """The units of all phases up to and including `until` (None: all)."""
    last = len(PHASES) if until is None else PHASES.index(until) + 1
    return [unit for unit in table if unit.phase in PHASES[:last]]


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


def load_function(unit: Unit) -> Callable[..., dict[str, Any]]:
    """Imports a unit's function only when it runs: a finished run must not wait for JAX."""
    module, function = unit.run.split(":")
    return getattr(importlib.import_module(f"frame_jax.{module}"), function)
