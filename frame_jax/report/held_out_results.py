"""`RUN/evaluation/*.json` in; curves, tables and differences between arms out."""

from __future__ import annotations

import bisect
from typing import Any

from frame_jax.run.directory import RunDirectory, read_json
from frame_jax.run.stale_steps import changed_input

Result = dict[str, Any]  # what `frame_jax.evaluation.held_out` writes for one curriculum
DIMENSIONS = ("domain", "language", "quadrant")


def read_results(directory: RunDirectory) -> dict[str, Result]:
    """The results of every evaluated curriculum, by name, but for those of other rows.

    An arm whose model was made from a partition that has been made anew since is left out: its
    quadrants, and perhaps its tokens, are not those of the other arms.
    """
    paths = sorted(directory.evaluation("any").parent.glob("*.json"))
    return {
        path.stem: read_json(path)
        for path in paths
        if changed_input(directory, f"evaluate-{path.stem}") is None
    }


def measurements_by_slice(checkpoint: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All measurements of a checkpoint by label: `all`, `domain: code`, `quadrant: Q1`, ..."""
    found = {"all": checkpoint["overall"]}
    for dimension in DIMENSIONS:
        for value, measured in checkpoint[dimension].items():
            found[f"{dimension}: {value}"] = measured
    return found


def curve_rows(results: dict[str, Result]) -> list[dict[str, Any]]:
    """Rows of arm, step, tokens, slice, nll and bits_per_byte for every kept checkpoint.

    The initial weights are left out: next to their loss, all later ones look alike.
    """
    return [
        {
            "arm": arm,
            "step": checkpoint["step"],
            "tokens": checkpoint["tokens"],
            "slice": label,
            "nll": measured["nll_per_token"],
            "bits_per_byte": measured["bits_per_byte"],
        }
        for arm, result in results.items()
        for checkpoint in result["checkpoints"]
        if checkpoint["step"] > 0
        for label, measured in measurements_by_slice(checkpoint).items()
    ]


def slice_labels(results: dict[str, Result]) -> list[str]:
    """The labels of all slices, `all` first."""
    return list(
        dict.fromkeys(
            label for r in results.values() for label in measurements_by_slice(final_checkpoint(r))
        )
    )


def difference_rows(curve: list[dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """`curve_rows` of the other arms, with `difference`: their NLL per token minus the baseline's.

    Checkpoints that the baseline has not at the same number of tokens are left out.
    """
    base = {(r["tokens"], r["slice"]): r["nll"] for r in curve if r["arm"] == baseline}
    return [
        {**row, "difference": row["nll"] - base[row["tokens"], row["slice"]]}
        for row in curve
        if row["arm"] != baseline and (row["tokens"], row["slice"]) in base
    ]


def checkpoints_around(
    result: Result, step: int
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The last checkpoint at or before `step`, and the first one after it."""
    checkpoints = result["checkpoints"]
    index = bisect.bisect_right([checkpoint["step"] for checkpoint in checkpoints], step)
    before = checkpoints[index - 1] if index else None
    return before, checkpoints[index] if index < len(checkpoints) else None


def final_checkpoint(result: Result) -> dict[str, Any]:
    """The checkpoint of the last step."""
    return result["checkpoints"][-1]
