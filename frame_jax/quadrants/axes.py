"""The two numbers that the quadrants are cut along: how they are computed and shown."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from frame_jax.config.scoring import ScoringConfig
from frame_jax.sql import parquet_table


class Axes(NamedTuple):
    """PPL and PD, or two columns of an imported table in their places.

    Documents are cut by `loss` and `gap`, which rank as the numbers that are shown.

    Attributes:
        names: What the two are called.
        scored: A query, of the scores of the part `{scores}`, for doc_id, counted (0 where there is
            nothing to predict), loss and gap.
        ppl: What is shown of a loss, in SQL with `{}` for it, and in Python.
        pd: What is shown of a gap, likewise.
        loss: The loss that `ppl`, a column, shows, in SQL.
    """

    names: tuple[str, str]
    scored: str
    ppl: tuple[str, Callable[[float], float]]
    pd: tuple[str, Callable[[float], float]]
    loss: str

    def query(self, scores: Path) -> str:
        """SQL for the table `scored` of one part of RUN/scores."""
        return self.scored.replace("{scores}", parquet_table(scores))


def make_axes(scoring: ScoringConfig) -> Axes:
    """The axes of a run.

    loss is the mean NLL of `ppl_model` and gap the mean loss of the weak minus that of the strong
    model, in nats a token or a byte: PPL = exp(loss) and PD = 1 - exp(-gap).
    """
    if scoring.table is not None:
        return Axes(
            names=(scoring.table.ppl, scoring.table.pd or "no second number"),
            scored="SELECT doc_id, 1 AS counted, ppl AS loss, pd AS gap FROM {scores}",
            ppl=("{}", float),
            pd=("{}", float),
            loss="ppl",
        )
    over, counted = "predicted_tokens", "predicted_tokens"
    names = ("PPL", "PD")
    if scoring.unit == "byte":
        over, counted = "bytes", "least(predicted_tokens_weak, predicted_tokens_strong)"
        names = ("PPL a byte", "PD a byte")
    return Axes(
        names=names,
        scored=f"SELECT doc_id, {counted} AS counted, nll_{scoring.ppl_model} / {over} AS loss, "
        f"nll_weak / {over} - nll_strong / {over} AS gap FROM {{scores}}",
        ppl=("exp({})", math.exp),
        pd=("1 - exp(-{})", lambda gap: 1 - math.exp(-gap)),
        loss="ln(ppl)",
    )
