"""Settings of the partition: axes, groups, training rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from frame_jax.config.base import check_bounds, number, require


@dataclass(frozen=True)
class RowsConfig:
    """How documents are packed into training rows.

    Attributes:
        sequence_length: Tokens a row predicts; a row stores one more.
        packing: `concat` joins documents and cuts the stream into rows; `best_fit` cuts only
            documents longer than a row, fits the pieces into rows and fills up with padding.
        parts: Output files for each quadrant, the unit of parallel work.
    """

    sequence_length: int = number(1024, least=2)
    packing: Literal["concat", "best_fit"] = "concat"
    parts: int = number(4, least=1)

    def __post_init__(self) -> None:
        check_bounds(self, "rows.")


@dataclass(frozen=True)
class AxesConfig:
    """Bins on each axis; the paper uses two by two.

    Attributes:
        ppl: Bins of perplexity.
        pd: Bins of perplexity difference.
    """

    ppl: int = number(2, least=1)
    pd: int = number(2, least=1)

    def __post_init__(self) -> None:
        check_bounds(self, "partition.axes.")

    def quadrant_name(self, ppl_bin: int, pd_bin: int) -> str:
        """The name of a quadrant, from its bins counted from 0 at the lowest values.

        >>> AxesConfig().quadrant(1, 0), AxesConfig(ppl=3).quadrant(2, 0)
        ('Q3', 'P3D1')
        """
        if self.ppl == self.pd == 2:
            return f"Q{2 * ppl_bin + pd_bin + 1}"
        return f"P{ppl_bin + 1}D{pd_bin + 1}"

    @property
    def quadrants(self) -> tuple[str, ...]:
        """All names, PPL rising outside, PD rising inside."""
        return tuple(self.quadrant_name(p, d) for p in range(self.ppl) for d in range(self.pd))


@dataclass(frozen=True)
class PartitionConfig:
    """How documents get quadrants and quadrants get rows.

    Attributes:
        mode: `nested` (PPL first, then PD inside each PPL bin: equal quadrants) or `independent`
            (two marginal cuts).
        group_by: Thresholds are found inside each combination of these; empty means one global
            set of thresholds.
        axes: Bins on each axis.
        min_group_tokens: Groups with fewer training tokens share the thresholds of their language.
        rows: Training rows of each quadrant.
    """

    mode: Literal["nested", "independent"] = "nested"
    group_by: list[Literal["domain", "language", "source"]] = field(
        default_factory=lambda: ["domain", "language"]
    )
    axes: AxesConfig = AxesConfig()
    min_group_tokens: int = number(0, least=0)
    rows: RowsConfig = RowsConfig()

    def __post_init__(self) -> None:
        check_bounds(self, "partition.")
        require(
            len(set(self.group_by)) == len(self.group_by), "partition.group_by repeats a column"
        )
