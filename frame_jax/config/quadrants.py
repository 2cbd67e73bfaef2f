"""Settings of the partition: axes, groups, training rows."""

import math
from dataclasses import dataclass, field
from typing import Literal

from frame_jax.config.base import check_bounds, later, number, require


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

        >>> AxesConfig().quadrant_name(1, 0), AxesConfig(ppl=3).quadrant_name(2, 0)
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
class MixtureConfig:
    """How often an epoch reads the training documents of each group.

    Attributes:
        by: The column whose values are the groups.
        repeats: How often, by name: 0.4 reads four documents in ten, 2 each of them twice. Groups
            that are not named are read once.
        weights: Shares of the tokens that an epoch reads, by name, in place of `repeats`; they need
            not sum to 1. Groups that are not named are not read.
        tokens: Text tokens that an epoch reads, with `weights`.
        max_repeats: The most that a group may be repeated; up to four epochs, repeated data is
            nearly as good as fresh (arXiv 2305.16264).
    """

    by: Literal["source", "domain", "language"]
    repeats: dict[str, float] | None = None
    weights: dict[str, float] | None = None
    tokens: float | None = number(None, above=0, below=math.inf)
    max_repeats: float = number(4.0, above=0, below=math.inf)

    def check(self) -> None:
        """Refuses impossible values; not on its own, where the parser would bury the message."""
        where = "partition.mixture."
        check_bounds(self, where)
        weighted = self.weights is not None
        require(
            (self.repeats is None) == weighted == (self.tokens is not None),
            "partition.mixture: give either repeats, or weights with the tokens of an epoch",
        )
        key = "weights" if weighted else "repeats"
        for name, value in self.numbers.items():
            require(
                0 <= value < math.inf,
                f"{where}{key}.{name} must be at least 0 and finite, not {value}",
            )
            require(
                weighted or value <= self.max_repeats,
                f"{where}repeats.{name} is {value:g}, and {where}max_repeats {self.max_repeats:g}: "
                "lower the one, or raise the other",
            )
        require(
            not weighted or sum(self.numbers.values()) > 0,
            f"{where}weights must give at least one group a weight above 0",
        )

    @property
    def numbers(self) -> dict[str, float]:
        """`repeats` or `weights`, by name."""
        return self.repeats or self.weights or {}


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
        mixture: How often an epoch reads the documents of each group; null reads each once.
    """

    mode: Literal["nested", "independent"] = "nested"
    group_by: list[Literal["domain", "language", "source"]] = field(
        default_factory=lambda: ["domain", "language"]
    )
    axes: AxesConfig = AxesConfig()
    min_group_tokens: int = number(0, least=0)
    rows: RowsConfig = RowsConfig()
    mixture: MixtureConfig | None = later(None)

    def __post_init__(self) -> None:
        check_bounds(self, "partition.")
        require(
            len(set(self.group_by)) == len(self.group_by), "partition.group_by repeats a column"
        )
        if self.mixture is not None:
            self.mixture.check()
            self.require_parts(max((self.mixture.repeats or {}).values(), default=1))

    def require_parts(self, repeats: float) -> None:
        """Refuses fewer row files than copies of a document: copies must not share a row."""
        require(
            self.rows.parts >= repeats,
            f"partition.rows.parts is {self.rows.parts}, and partition.mixture reads documents "
            f"{math.ceil(repeats)} times: each copy is in a part of its own, so set "
            f"partition.rows.parts to {math.ceil(repeats)} or more",
        )
