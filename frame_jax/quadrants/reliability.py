"""How far PPL, PD and quadrants are a property of the text: documents under two pairs of reference
models, in ranks and in quadrants.

If PD is what is the text's plus what is the models', of two pairs alike, the correlation r of both
is the share of its variance that is the text's. Quadrants that are cut by such a PD differ in the
text's by sqrt(r) of what they would without the models' share, and so does what an order of them
can do (docs/scoring.md; Spearman's attenuation). [ours]
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from scipy import stats

from frame_jax.config.quadrants import PartitionConfig
from frame_jax.quadrants import assign
from frame_jax.run.partition_record import Reliability, Share

FEWEST = 20  # documents of a domain that are worth a line
WARN_CORRELATION = 0.5  # below it, less than 0.7 of the effect is left
SURE = 1.96  # standard errors of an interval of 95%


def measure_reliability(
    connection: duckdb.DuckDBPyConnection,
    config: PartitionConfig,
    axes: assign.Axes,
    folders: Sequence[Path],
) -> Iterator[Reliability]:
    """Compares the scores in `documents` with those of the parts in each folder, by their domains.

    Both are cut on the sample alone, group by group, as the corpus is.
    """
    columns = ", ".join(config.group_by) or "'all'"
    for folder in folders:
        others = axes.query(*sorted(folder.glob("part-*.parquet")))
        found = connection.execute(
            f"""
            SELECT coalesce(domain::VARCHAR, 'none') AS domain, doc_id, tokens,
                dense_rank() OVER (ORDER BY {columns}) - 1 AS scope,
                documents.loss, documents.gap, other.loss AS other_loss, other.gap AS other_gap
            FROM documents JOIN labels USING (label)
                JOIN ({others}) other USING (doc_id)
            WHERE copies > 0 AND isfinite(other.loss + other.gap) ORDER BY doc_id
            """
        ).fetchnumpy()
        values = {name: np.asarray(column) for name, column in found.items()}
        bins = [
            cut_sample(config, values[f"{of}loss"], values[f"{of}gap"], values)
            for of in ("", "other_")
        ]
        names = ("loss", "other_loss", "gap", "other_gap")
        ranks = [ranks_in_scope(values[name], values["scope"]) for name in names]
        for domain in [None, *np.unique(values["domain"])]:
            own = (values["domain"] == domain) | (domain is None)
            if own.sum() >= FEWEST:
                one, other = (cut[:, own] for cut in bins)
                tokens = values["tokens"][own].astype(np.float64)
                loss, other_loss, gap, other_gap = (rank[own] for rank in ranks)
                yield Reliability(
                    folder.name,
                    domain,
                    len(tokens),
                    rank_correlation(loss, other_loss),
                    rank_correlation(gap, other_gap),
                    *(same_share(tokens, *pair) for pair in zip(one, other, strict=True)),
                )


def cut_sample(
    config: PartitionConfig, loss: np.ndarray, gap: np.ndarray, values: dict[str, np.ndarray]
) -> np.ndarray:
    """Quadrant, bin of PPL and bin of PD of each document: int64 [3, documents]."""
    # Documents are in the order of their ids.
    ids = pa.array([f"{index:09}" for index in range(len(loss))], pa.string())
    sample = {"loss": loss, "gap": gap, "tokens": values["tokens"], "doc_id": ids}
    with duckdb.connect() as connection:
        connection.register("training", pa.table({"threshold_group": values["scope"], **sample}))
        for axis, bins, ranked in assign.ranked_documents_sql(config):
            assign.compute_thresholds(connection, f"{axis}_thresholds", ranked, bins)
        found = connection.execute(
            f"""
            SELECT {assign.bin_index_sql("loss", "ppl_thresholds", config.axes.ppl)} AS ppl,
                {assign.bin_index_sql("gap", "pd_thresholds", config.axes.pd)} AS pd
            FROM training JOIN ppl_thresholds ON ppl_thresholds.scope = threshold_group
                JOIN pd_thresholds ON pd_thresholds.scope = {assign.pd_scope_sql(config)}
            ORDER BY doc_id
            """
        ).fetchnumpy()
    ppl, pd = (np.asarray(found[axis], np.int64) for axis in ("ppl", "pd"))
    return np.stack([ppl * config.axes.pd + pd, ppl, pd])


def ranks_in_scope(values: np.ndarray, scope: np.ndarray) -> np.ndarray:
    """Where a document's value lies among those of its scope, above 0 and below 1; equals share a
    rank. What sets groups apart is no reliability of the quadrants, which are cut inside them."""
    found = np.empty(len(values))
    for number in np.unique(scope):
        own = scope == number
        found[own] = stats.rankdata(values[own]) / (own.sum() + 1)
    return found


def rank_correlation(one: np.ndarray, other: np.ndarray) -> Share:
    """Spearman's correlation, with an interval of 95% on Fisher's scale (Fieller, Hartley and
    Pearson 1957); 0 where all values of one are the same."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return Share(0.0, -1.0, 1.0, 0.0)
    value = float(stats.spearmanr(one, other).statistic)
    if abs(value) == 1:
        return Share(value, value, value, 0.0)
    around = SURE * math.sqrt(1.06 / (len(one) - 3))
    low, high = (math.tanh(math.atanh(value) + step) for step in (-around, around))
    return Share(value, low, high, 0.0)


def same_share(tokens: np.ndarray, one: np.ndarray, other: np.ndarray) -> Share:
    """Share of the tokens in documents whose bin is the same in both, and what it would be if the
    two had nothing to do with each other; the interval is over documents."""
    total = tokens.sum()
    same = one == other
    value = float(tokens @ same / total)
    around = SURE * math.sqrt(np.square(tokens * (same - value)).sum()) / total
    chance = sum(
        float(tokens @ (one == code) / total * (tokens @ (other == code) / total))
        for code in np.unique(one)
    )
    return Share(value, max(value - around, 0.0), min(value + around, 1.0), chance)


def reliability_warnings(lines: Sequence[Reliability], pd_name: str) -> Iterator[str]:
    """Yields a warning for each pair of models under which PD is too much the models' own."""
    for line in lines:
        if line.domain is None and line.pd.value < WARN_CORRELATION:
            left = math.sqrt(max(line.pd.value, 0.0))
            about = "at most" if line.compared_with == "third" else "about"
            yield (
                f"{pd_name} says more of the reference models than of the text: with "
                f"{line.of_models} it ranks {line.documents:,} documents in another order "
                f"(Spearman {line.pd.value:.2f}), and {line.quadrant.value:.0%} of the tokens stay "
                f"in their quadrant (by chance {line.quadrant.chance:.0%}). An order by it can do "
                f"{about} {left:.0%} of what it could. Train the reference models longer, or on "
                "more text"
            )
