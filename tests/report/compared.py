"""Made-up runs to compare: what `compare.json` holds of each."""

from __future__ import annotations

from frame_jax.report.compared_runs import ComparedRun
from frame_jax.report.study_results import FINAL, ComparedLine, Comparison, Study
from frame_jax.report.verdict import RULE, decide_verdict
from frame_jax.run.partition_record import Reliability, Share


def make_compared_run(
    name: str,
    effects: dict[str, list[float]],
    *,
    parameters: int = 120_936,
    ratio: float = 19.85,
    scores: str = "PPL, PD",
    references: str = "121 k, 475 k",
    layers: str = "attention+dense",
    baseline: str = "random",
    document_error: float = 0.001,
    documents: int = 200,
    reliability: float | None = None,
) -> ComparedRun:
    """A run whose arms differ from the baseline by `effects`, bits per byte for each seed."""
    seeds = tuple(range(max(map(len, effects.values()))))
    comparisons = [
        Comparison(
            ComparedLine(arm, FINAL),
            ComparedLine(baseline, FINAL),
            seeds[: len(by_seed)],
            {"all": decide_verdict(by_seed, document_error)},
            {},
            "",
        )
        for arm, by_seed in effects.items()
    ]
    share = Share(reliability or 0.0, 0.0, 1.0, 0.0)
    again = Reliability("half", None, documents, *[share] * 5)
    return ComparedRun(
        name=name,
        layers=layers,
        parameters=parameters,
        tokens=round(parameters * ratio),
        scores=scores,
        references=references,
        documents=documents,
        bytes=5_000 * documents,
        reliability=() if reliability is None else (again,),
        study=Study("bits per byte", RULE, baseline, seeds, 1, (), tuple(comparisons), (), ()),
    )
