"""A run's markers and held-out curves in; what it cost, and what an order saved, out."""

from __future__ import annotations

from typing import Any

from frame_jax.config.run import RunConfig, Trial
from frame_jax.models.flops import forward_flops_per_token, training_flops_per_token
from frame_jax.models.functional import Decoder, read_description
from frame_jax.report.held_out_results import Result
from frame_jax.run.directory import RunDirectory, read_json
from frame_jax.run.phases import REFERENCES


def run_costs(config: RunConfig, directory: RunDirectory) -> list[dict[str, Any]]:
    """What was computed: `work`, `flops` and `seconds` of each finished piece of the run.

    FLOPs are those of `models.flops`. Scoring's are null where a reference model was imported,
    whose shape is not in the run directory, or scores were made elsewhere. Seconds are wall-clock,
    all that the phase step did included.
    """
    found = []
    for name in REFERENCES:
        folder, marker = directory.reference(name), finished_marker(directory, f"reference-{name}")
        if marker is not None:
            length = config.reference.rows.sequence_length
            tokens = marker["summary"]["tokens"]
            flops = tokens * training_flops(read_description(folder), length)
            found.append(cost_line(f"reference {name}", marker, flops))
    marker = finished_marker(directory, "score")
    if marker is not None:
        found.append(cost_line("score", marker, scoring_flops(config, directory)))
    for trial in config.trials:
        marker = finished_marker(directory, f"pretrain-{trial.name}")
        if marker is not None:
            decoder = read_description(directory.pretrain(trial.name))
            length = config.partition.rows.sequence_length
            flops = marker["summary"]["tokens"] * training_flops(decoder, length)
            found.append(cost_line(f"pretrain {trial.name}", marker, flops))
    return found


def cost_line(work: str, marker: dict[str, Any], flops: float | None) -> dict[str, Any]:
    return {"work": work, "flops": flops, "seconds": marker["seconds"]}


def finished_marker(directory: RunDirectory, phase_step: str) -> dict[str, Any] | None:
    """The marker of a phase step that is complete."""
    path = directory.marker(phase_step)
    marker = read_json(path) if path.exists() else {"complete": False}
    return marker if marker["complete"] else None


def training_flops(decoder: Decoder, length: int) -> float:
    return training_flops_per_token(decoder.config, decoder.vocab_size, length)


def scoring_flops(config: RunConfig, directory: RunDirectory) -> float | None:
    """FLOPs of scoring the train and held-out splits under both reference models."""
    if config.scoring.table is not None:
        return None
    marker = finished_marker(directory, "tokenize")
    folders = [directory.reference(name) for name in REFERENCES]
    if marker is None or not all((folder / "model.json").exists() for folder in folders):
        return None
    tokens = sum(marker["summary"]["tokens"].get(split, 0) for split in ("train", "held_out"))
    per_token = 0.0
    for folder in folders:
        decoder = read_description(folder)
        per_token += forward_flops_per_token(
            decoder.config, decoder.vocab_size, config.scoring.context
        )
    return tokens * per_token


def steps_to_baseline_loss(
    config: RunConfig, costs: list[dict[str, Any]], results: dict[Trial, Result]
) -> list[dict[str, Any]]:
    """When each arm's held-out loss reaches the final one of the baseline under the same seed.

    Args:
        config: The run.
        costs: What it cost, see `run_costs`.
        results: Held-out results by trial.

    Returns:
        arm; `steps` by seed, null where it never does; `share`, their mean over the baseline's
        steps, and `share_with_scoring`, the same with the FLOPs of references and scoring on top;
        both null unless every seed gets there.
    """
    overhead: float | None = 0.0
    for piece in costs:
        if not piece["work"].startswith("pretrain"):
            known = overhead is not None and piece["flops"] is not None
            overhead = overhead + piece["flops"] if known else None
    flops = {piece["work"]: piece["flops"] for piece in costs}
    found = []
    for arm in config.curricula:
        steps, shares, with_scoring = [], [], []
        for trial, result in results.items():
            base = next(
                (t for t in results if t.arm == config.baseline and t.seed == trial.seed), None
            )
            if trial.arm != arm or base is None or base == trial:
                continue
            last = results[base]["checkpoints"][-1]
            step = first_step_at_loss(result, last["overall"]["nll_per_token"])
            steps.append(step)
            if step is not None:
                shares.append(step / last["step"])
                whole = flops.get(f"pretrain {base.name}")
                if overhead is not None and whole:
                    with_scoring.append(step / last["step"] + overhead / whole)
        if steps:
            every = None not in steps
            found.append(
                {
                    "arm": arm,
                    "steps": steps,
                    "share": mean_or_none(shares) if every else None,
                    "share_with_scoring": mean_or_none(with_scoring) if every else None,
                }
            )
    return found


def first_step_at_loss(result: Result, loss: float) -> float | None:
    """The step at which a held-out curve first comes down to `loss`, between two kept checkpoints
    on the straight line; None if it never does."""
    before: tuple[int, float] | None = None
    for checkpoint in result["checkpoints"]:
        step, nll = checkpoint["step"], checkpoint["overall"]["nll_per_token"]
        if nll <= loss:
            if before is None or before[1] == nll:
                return float(step)
            share = (before[1] - loss) / (before[1] - nll)
            return before[0] + share * (step - before[0])
        before = step, nll
    return None


def mean_or_none(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
