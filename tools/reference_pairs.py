"""Which reference models make PD a property of the text: all pairs of the models that runs trained.

    python tools/reference_pairs.py RUN... [--json]

Each RUN is an evaluated run on one corpus with a target model of its own size or steps, trained in
random order under several seeds. All have the losses of the same held-out documents, at every
checkpoint that was kept and for every average of weights, so any two of them can stand for a weak
and a strong reference model. A line is a pair: PPL and PD of documents under one seed against those
under another (Spearman inside each domain and language, mean over the pairs of seeds); PD of long
documents alone (more tokens than the median); the mean PD of all seeds but one against that one,
with what it would be if what seeds add were noise; PD against that of the pair that cost most; and
against the strong model's PPL, low to high, which PD is no more than where it is near 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from frame_jax.config.file import load
from frame_jax.errors import USAGE_ERROR, UserError, print_error
from frame_jax.evaluation.results import WeightsResult, read_results, scores_folder
from frame_jax.models.flops import training_flops_per_token
from frame_jax.models.transformer import read_description
from frame_jax.quadrants.reliability import rank_correlation, ranks_in_scope
from frame_jax.run.directory import RunDirectory, list_parts
from frame_jax.sql import parquet_table, query

Losses = dict[str, float]  # nats a token of each document


@dataclasses.dataclass(frozen=True)
class Model:
    """What a run trained in random order, at one of its checkpoints or as an average of them.

    Attributes:
        run: Name of the run.
        parameters: Of the model.
        weights: The step, or `average-...`.
        tokens: Training tokens until then.
        flops: What the training until then cost.
        losses: By seed.
    """

    run: str
    parameters: int
    weights: str
    tokens: int
    flops: float
    losses: dict[int, Losses]


@dataclasses.dataclass(frozen=True)
class Line:
    """A weak and a strong model; correlations as in the text above.

    Attributes:
        weak: Parameters, tokens and weights of the weak model.
        strong: Those of the strong one.
        flops: What training both cost.
        ppl: PPL of the strong model, between seeds.
        pd: PD, between seeds.
        pd_long: The same for long documents.
        pd_averaged: Mean PD of all seeds but one, against that one.
        pd_averaged_by_rule: What that would be by `pd` alone.
        pd_best: PD against that of the pair that cost most, other seeds.
        pd_low_ppl: PD against the PPL of the strong model turned round, same seed.
    """

    weak: tuple[int, int, str]
    strong: tuple[int, int, str]
    flops: float
    ppl: float
    pd: float
    pd_long: float
    pd_averaged: float | None
    pd_averaged_by_rule: float | None
    pd_best: float
    pd_low_ppl: float


@dataclasses.dataclass(frozen=True)
class Documents:
    """Held-out documents that all models have losses of: ids, groups as numbers, tokens."""

    ids: list[str]
    scope: np.ndarray
    tokens: np.ndarray


def read_models(folder: Path) -> Iterator[Model]:
    """Yields what `folder`, a run directory, has of its baseline, but for the initial weights."""
    directory = RunDirectory(folder)
    config = load(directory.config)
    results = read_results(directory)
    trials = [t for t in config.trials if t.arm == config.baseline and t.name in results]
    if not trials:
        raise UserError(f"{folder}: no trial of {config.baseline} is evaluated; run it to its end")
    decoder = read_description(directory.pretrain(trials[0].name))
    per_token = training_flops_per_token(decoder, config.partition.rows.sequence_length)

    def of_weights(result_weights: WeightsResult) -> Model:
        losses = {
            trial.seed: read_losses(scores_folder(directory, trial.name, result_weights.name))
            for trial in trials
        }
        tokens = result_weights.tokens
        return Model(
            folder.name,
            decoder.parameter_count(),
            result_weights.name,
            tokens,
            tokens * per_token,
            losses,
        )

    first = results[trials[0].name]
    for found in (*first.checkpoints, *first.averages):
        if found.step > 0:
            yield of_weights(found)


def read_losses(folder: Path) -> Losses:
    """Nats a token by document."""
    table = parquet_table(*list_parts(folder, ".parquet"))
    lines = query(
        lambda doc_id, loss: (doc_id, loss),
        f"SELECT doc_id, nll / predicted_tokens FROM {table} WHERE predicted_tokens > 0",
    )
    return dict(lines)


def read_documents(folder: Path, models: Sequence[Model]) -> Documents:
    """The documents that all models have losses of, in order of their ids."""
    ids = set.intersection(*(set(each) for model in models for each in model.losses.values()))
    table = parquet_table(*list_parts(RunDirectory(folder).tokens, ".parquet"))
    lines = query(
        lambda doc_id, scope, tokens: (doc_id, scope, tokens),
        "SELECT doc_id, dense_rank() OVER (ORDER BY domain, language), tokens "
        f"FROM {table} WHERE split = 'held_out' ORDER BY doc_id",
    )
    kept = [line for line in lines if line[0] in ids]
    if len(kept) < 20:
        raise UserError(
            f"the runs have measured {len(kept)} documents in common, too few to rank: use runs on "
            "one corpus, with evaluation.max_documents of several hundred"
        )
    found, scope, tokens = zip(*kept, strict=True)
    return Documents(list(found), np.array(scope), np.array(tokens))


def correlation(one: np.ndarray, other: np.ndarray, scope: np.ndarray) -> float:
    """Spearman's, of ranks inside each group."""
    return rank_correlation(*(ranks_in_scope(values, scope) for values in (one, other))).value


def mean_pd(weak: Model, strong: Model, seeds: Sequence[int], ids: list[str]) -> np.ndarray:
    """PD of each document, the mean over seeds: float64 [documents]."""
    gaps = [[weak.losses[s][i] - strong.losses[s][i] for i in ids] for s in seeds]
    return (1 - np.exp(-np.array(gaps))).mean(axis=0)


def compare_pair(weak: Model, strong: Model, best: tuple[Model, Model], found: Documents) -> Line:
    """Measures one pair; None of the averages where there are two seeds."""
    ids, scope = found.ids, found.scope
    seeds = sorted(set(weak.losses) & set(strong.losses))
    pd = {seed: mean_pd(weak, strong, [seed], ids) for seed in seeds}
    ppl = {seed: np.array([strong.losses[seed][i] for i in ids]) for seed in seeds}
    long = found.tokens > np.median(found.tokens)
    pairs = list(itertools.combinations(seeds, 2))

    def mean(values: Iterator[float]) -> float:
        return float(np.mean(list(values)))

    between = mean(correlation(pd[a], pd[b], scope) for a, b in pairs)
    averaged = by_rule = None
    if len(seeds) > 2:
        others = {s: [other for other in seeds if other != s] for s in seeds}
        averaged = mean(
            correlation(pd[s], mean_pd(weak, strong, others[s], ids), scope) for s in seeds
        )
        # Of k averaged numbers, each r alike with any other, with one more (Spearman 1910).
        k = len(seeds) - 1
        by_rule = between * np.sqrt(k / (1 + (k - 1) * max(between, 0.0)))
    best_pd = {seed: mean_pd(*best, [seed], ids) for seed in best[0].losses}
    return Line(
        (weak.parameters, weak.tokens, weak.weights),
        (strong.parameters, strong.tokens, strong.weights),
        weak.flops + strong.flops,
        mean(correlation(ppl[a], ppl[b], scope) for a, b in pairs),
        between,
        mean(correlation(pd[a][long], pd[b][long], scope[long]) for a, b in pairs),
        averaged,
        by_rule,
        mean(correlation(pd[a], best_pd[b], scope) for a in seeds for b in best_pd if a != b),
        mean(correlation(pd[a], -ppl[a], scope) for a in seeds),
    )


def compare_all(folders: Sequence[Path]) -> tuple[Documents, list[Line]]:
    """Measures all pairs of models of different sizes, by what they cost."""
    models = [model for folder in folders for model in read_models(folder)]
    pairs = [
        (weak, strong)
        for weak, strong in itertools.product(models, models)
        if weak.parameters < strong.parameters and len(set(weak.losses) & set(strong.losses)) > 1
    ]
    if not pairs:
        raise UserError("give runs of at least two sizes, each under at least two seeds")
    found = read_documents(folders[0], models)
    best = max(pairs, key=lambda pair: pair[0].flops + pair[1].flops)
    lines = [compare_pair(*pair, best, found) for pair in pairs]
    return found, sorted(lines, key=lambda line: line.flops)


def as_markdown(lines: Sequence[Line]) -> str:
    """A table for a page."""

    def model(side: tuple[int, int, str]) -> str:
        parameters, tokens, weights = side
        mean = f", {weights}" if weights.startswith("average") else ""
        return f"{parameters / 1e6:.2f}M, {tokens / 1e6:.2f}M{mean}"

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    rows = [
        [
            *(model(line.weak), model(line.strong), f"{line.flops:.1e}"),
            *(number(value) for value in (line.ppl, line.pd, line.pd_long, line.pd_averaged)),
            *(number(v) for v in (line.pd_averaged_by_rule, line.pd_best, line.pd_low_ppl)),
        ]
        for line in lines
    ]
    header = [
        *("weak: parameters, tokens", "strong", "FLOPs", "PPL", "PD", "PD, long documents"),
        *("PD, seeds averaged", "by rule", "PD, with the costliest pair", "PD, with low PPL"),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def main(arguments: list[str] | None = None) -> int:
    """Prints the table, or JSON lines; returns the exit code."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    options.add_argument("--json", action="store_true", help="print JSON lines")
    given = options.parse_args(arguments)
    try:
        found, lines = compare_all(given.runs)
    except UserError as error:
        print_error(error)
        return USAGE_ERROR
    if given.json:
        for line in lines:
            print(json.dumps(dataclasses.asdict(line)))
    else:
        print(f"{len(found.ids)} documents\n\n{as_markdown(lines)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
