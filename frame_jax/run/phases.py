"""The table of phases and their steps, in order; names every package's functions as text.

A phase is one or more phase steps: `reference_step` is three, `pretrain_step` one a trial (an arm
under a seed).
"""

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any

from frame_jax.config.run import RunConfig, Trial

PHASES = ("tokenize", "reference", "score", "partition", "pretrain", "evaluate", "report")

REFERENCES = ("weak", "strong")  # the reference models, in the order of their scores


@dataclasses.dataclass(frozen=True)
class PhaseStep:
    """A part of a phase with one completion marker.

    Attributes:
        name: Name of the marker, e.g. `pretrain-frame`; begins with the phase it belongs to.
        settings: Dotted config keys its outputs depend on.
        inputs: Phase steps whose outputs it reads.
        function: `module:function`, called with the config, the run directory and `arguments`.
        arguments: Further arguments of the function.
        outputs: What `--redo` removes, relative to the run directory.
        seed: Takes the place of the run's among its settings; None for the run's own.
    """

    name: str
    settings: tuple[str, ...]
    inputs: tuple[str, ...]
    function: str
    arguments: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    seed: int | None = None

    @property
    def phase(self) -> str:
        """The phase it belongs to."""
        return self.name.split("-")[0]

    @property
    def needs_devices(self) -> bool:
        """Whether it computes on JAX's devices."""
        return self.function.startswith(("training.", "scoring.score:", "evaluation."))


def list_phase_steps(config: RunConfig) -> list[PhaseStep]:
    """All phase steps of a run, in the order in which they run."""
    trained = config.reference.trained
    scored = [
        *([REFERENCE_ROWS] if trained else []),
        *(reference_step(name) for name in trained),
        score_step(trained),
        *replica_steps(config, trained),
        *([sample_step("third")] if config.reference.third is not None else []),
    ]
    return [
        TOKENIZE,
        *(scored if config.scoring.table is None else [IMPORT_SCORES]),
        PARTITION,
        *(pretrain_step(trial) for trial in config.trials),
        *(evaluate_step(trial.name) for trial in config.trials),
        report_step(config),
    ]


TOKENIZE = PhaseStep(
    "tokenize",
    settings=("corpus", "tokenizer", "seed"),
    inputs=(),
    function="corpus.tokenize:tokenize_corpus",
    outputs=("tokens", "tokenizer"),
)

REFERENCE_ROWS = PhaseStep(
    "reference-rows",
    settings=("reference.rows", "seed"),
    inputs=("tokenize",),
    function="quadrants.partition:write_reference_rows",
    outputs=("reference/rows",),
)


def reference_step(name: str, *replica: str, seed: int | None = None) -> PhaseStep:
    """The phase step that trains one reference model, or its replica, under another seed."""
    *_, trained = name, *replica
    return PhaseStep(
        f"reference-{trained}",
        settings=(f"reference.{name}", "seed"),
        inputs=("reference-rows",),
        function="training.phases:train_reference",
        arguments=(name, *replica),
        outputs=(f"reference/{trained}",),
        seed=seed,
    )


def score_step(trained: list[str]) -> PhaseStep:
    """The phase step that scores under both reference models, of which some are trained here."""
    imported = [name for name in REFERENCES if name not in trained]
    return PhaseStep(
        "score",
        settings=("scoring", *(f"reference.{name}.checkpoint" for name in imported)),
        inputs=("tokenize", *(f"reference-{name}" for name in trained)),
        function="scoring.score:score_corpus",
        outputs=("scores", "reliability"),
    )


def sample_step(name: str, *inputs: str) -> PhaseStep:
    """The phase step that scores a sample under other models, from which nothing else is made."""
    return PhaseStep(
        f"score-{name}",
        settings=("scoring.reliability", *(["reference.third"] if name == "third" else [])),
        inputs=("score", *inputs),
        function="scoring.score:score_under_others",
        arguments=(name,),
        outputs=(f"reliability/{name}",),
    )


def replica_steps(config: RunConfig, trained: list[str]) -> list[PhaseStep]:
    """The phase steps that train reference models under another seed and score a sample."""
    if not trained or config.reference.replicas == 1:
        return []
    seed = config.seed + 1
    trainings = [reference_step(name, replica_name(name), seed=seed) for name in trained]
    return [*trainings, sample_step("replica", *(training.name for training in trainings))]


def replica_name(name: str) -> str:
    """What the replica of a reference model is called."""
    return f"{name}-replica"


IMPORT_SCORES = PhaseStep(
    "score",
    settings=("scoring.table",),
    inputs=("tokenize",),
    function="scoring.table:import_scores",
    outputs=("scores", "reliability"),
)

PARTITION = PhaseStep(
    "partition",
    settings=("partition", "scoring.ppl_model", "seed"),
    inputs=("score",),
    function="quadrants.partition:partition_corpus",
    outputs=("quadrants",),
)


def pretrain_step(trial: Trial) -> PhaseStep:
    """The phase step that trains one arm under one seed."""
    return PhaseStep(
        f"pretrain-{trial.name}",
        settings=("pretrain", f"curricula.{trial.arm}", "seed"),
        inputs=("partition",),
        function="training.phases:pretrain",
        arguments=(trial.name,),
        outputs=(f"pretrain/{trial.name}",),
        seed=trial.seed,
    )


def evaluate_step(trial: str) -> PhaseStep:
    """The phase step that evaluates one trial."""
    return PhaseStep(
        f"evaluate-{trial}",
        settings=("evaluation", "scoring"),
        inputs=(f"pretrain-{trial}",),
        function="evaluation.held_out:evaluate_trial",
        arguments=(trial,),
        outputs=(f"evaluation/{trial}.json", f"evaluation/{trial}"),
    )


def report_step(config: RunConfig) -> PhaseStep:
    """The phase step that reports on all trials."""
    return PhaseStep(
        "report",
        settings=("baseline",),
        inputs=tuple(f"evaluate-{trial.name}" for trial in config.trials),
        function="report.report:write_report",
        outputs=("report",),
    )


def select_until(table: Sequence[PhaseStep], until: str | None) -> list[PhaseStep]:
    """The phase steps of all phases up to and including `until` (None: all)."""
    last = len(PHASES) if until is None else PHASES.index(until) + 1
    return [phase_step for phase_step in table if phase_step.phase in PHASES[:last]]


def source_names(table: Sequence[PhaseStep], left: Sequence[PhaseStep]) -> list[str]:
    """Names of the finished phase steps from which, directly or not, the steps `left` are made."""
    names = {phase_step.name for phase_step in left}
    found = set(names)
    for phase_step in reversed(table):  # which is in the order in which they run
        if phase_step.name in found:
            found |= set(phase_step.inputs)
    return sorted(found - names)


def load_function(phase_step: PhaseStep) -> Callable[..., dict[str, Any]]:
    """Imports a phase step's function when it runs: a finished run must not wait for JAX."""
    module, function = phase_step.function.split(":")
    return getattr(importlib.import_module(f"frame_jax.{module}"), function)
