"""Counts what a run cost, and when an order reaches the loss that the baseline ends with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from frame_jax.config.run import RunConfig, Trial
from frame_jax.evaluation.results import TrialResult
from frame_jax.models.flops import forward_flops_per_token, training_flops_per_token
from frame_jax.models.transformer import read_description
from frame_jax.report.paired_differences import baseline_trials
from frame_jax.report.study_results import Cost, StepsToBaseline
from frame_jax.run.directory import RunDirectory
from frame_jax.run.markers import read_complete_marker
from frame_jax.run.phases import REFERENCES


def run_costs(config: RunConfig, directory: RunDirectory) -> list[Cost]:
    """Lists the cost of each finished piece of a run: references, scoring, training."""
    of_references = config.reference.rows.sequence_length
    found = [
        training_cost(directory, f"reference {name}", directory.reference(name), of_references)
        for name in REFERENCES
    ]
    if (marker := read_complete_marker(directory, "score")) is not None:
        found.append(Cost("score", scoring_flops(config, directory), marker.seconds))
    of_trials = config.partition.rows.sequence_length
    found += [
        training_cost(directory, f"pretrain {name}", directory.pretrain(name), of_trials)
        for name in (trial.name for trial in config.trials)
    ]
    return [cost for cost in found if cost is not None]


def training_cost(
    directory: RunDirectory, work: str, folder: Path, sequence_length: int
) -> Cost | None:
    """The cost of the model trained in `folder`; None where its training has not finished."""
    marker = read_complete_marker(directory, work.replace(" ", "-", 1))
    if marker is None:
        return None
    decoder, tokens = read_description(folder), marker.summary["tokens"]
    flops = training_flops_per_token(decoder.config, decoder.vocab_size, sequence_length)
    return Cost(work, tokens * flops, marker.seconds)


def scoring_flops(config: RunConfig, directory: RunDirectory) -> float | None:
    """FLOPs of scoring the train and held-out splits under both reference models.

    None where a reference model was imported, whose shape is not in the run directory, or scores
    were made elsewhere.
    """
    if config.scoring.table is not None:
        return None
    marker = read_complete_marker(directory, "tokenize")
    folders = [directory.reference(name) for name in REFERENCES]
    if marker is None or not all((folder / "model.json").exists() for folder in folders):
        return None
    tokens = sum(marker.summary["tokens"].get(split, 0) for split in ("train", "held_out"))
    per_token = sum(
        forward_flops_per_token(decoder.config, decoder.vocab_size, config.scoring.context)
        for decoder in map(read_description, folders)
    )
    return tokens * per_token


def steps_to_baseline(
    config: RunConfig, costs: Sequence[Cost], results: dict[Trial, TrialResult]
) -> list[StepsToBaseline]:
    """Finds when each arm's held-out loss reaches the final one of the baseline, seed by seed."""
    flops = {cost.work: cost.flops for cost in costs}
    shared = [value for work, value in flops.items() if not work.startswith("pretrain")]
    overhead = None if None in shared else sum(value for value in shared if value is not None)
    pairs = baseline_trials(config, results)
    found = []
    for arm in config.curricula:
        steps, shares, with_scoring = [], [], []
        for trial, base in pairs.items():
            if trial.arm != arm:
                continue
            last = results[base].final
            step = first_step_at_loss(results[trial], last.overall.nll_per_token)
            steps.append(step)
            if step is not None:
                shares.append(step / last.step)
                whole = flops.get(f"pretrain {base.name}")
                if overhead is not None and whole:
                    with_scoring.append(step / last.step + overhead / whole)
        if steps:
            means = [
                sum(values) / len(values) if values and None not in steps else None
                for values in (shares, with_scoring)
            ]
            found.append(StepsToBaseline(arm, tuple(steps), *means))
    return found


def first_step_at_loss(result: TrialResult, loss: float) -> float | None:
    """The step at which a held-out curve first comes down to `loss`; None if it never does.

    Between two kept checkpoints the curve is a straight line.
    """
    before: tuple[int, float] | None = None
    for checkpoint in result.checkpoints:
        step, nll = checkpoint.step, checkpoint.overall.nll_per_token
        if nll <= loss:
            if before is None or before[1] == nll:
                return float(step)
            share = (before[1] - loss) / (before[1] - nll)
            return before[0] + share * (step - before[0])
        before = step, nll
    return None
