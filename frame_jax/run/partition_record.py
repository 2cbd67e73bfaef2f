"""Reads and writes `quadrants/partition.json`: a run's thresholds and what its quadrants hold."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frame_jax.errors import UserError
from frame_jax.run.directory import RunDirectory, read_dataclass


@dataclass(frozen=True)
class BinStart:
    """The document with which a bin of an axis begins, in the order of (value, doc_id)."""

    value: float
    doc_id: str


@dataclass(frozen=True)
class Thresholds:
    """Where each bin but the first begins in a group; None where no document is left for it.

    Attributes:
        of: Whose thresholds these are: those of the `group`, or of its `language`.
        pd: Bins of PD, in each bin of PPL; under `independent` only once.
    """

    of: str
    ppl: list[BinStart | None]
    pd: list[list[BinStart | None]]


@dataclass(frozen=True)
class QuadrantContents:
    """What a quadrant holds.

    Attributes:
        documents: Training documents that are read, each once.
        tokens: Their text tokens, as often as an epoch reads them.
        ppl: PPL of the training tokens, the exponential of their mean loss (of a column in its
            place, the mean); None where there are none.
        pd: Mean PD of the training tokens.
    """

    documents: int
    tokens: int
    held_out_documents: int
    ppl: float | None
    pd: float | None


@dataclass(frozen=True, kw_only=True)
class GroupRecord:
    """A group of documents; of its columns, those that are not in `group_by` are None."""

    domain: str | None = None
    language: str | None = None
    source: str | None = None
    thresholds: Thresholds
    quadrants: dict[str, QuadrantContents]


@dataclass(frozen=True)
class DocumentCount:
    """A number of documents and of their text tokens."""

    documents: int
    tokens: int


@dataclass(frozen=True)
class ThinGroups:
    """Groups with fewer training documents than there are quadrants, and these documents."""

    groups: int
    documents: int


@dataclass(frozen=True)
class MixtureGroup:
    """The training documents of one group of a mixture.

    Attributes:
        name: Its name; None for documents without one.
        tokens: Their text tokens, each document once.
        repeats: How often an epoch reads them.
        share: Of the tokens of an epoch, as asked for.
        read: Text tokens that an epoch reads.
    """

    name: str | None
    tokens: int
    repeats: float
    share: float
    read: int = 0
    quadrants: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Mixture:
    """How often an epoch reads the training documents of each group, by a column's value."""

    by: str
    groups: tuple[MixtureGroup, ...]

    @property
    def read(self) -> int:
        """Text tokens that an epoch reads."""
        return sum(group.read for group in self.groups)

    def lines(self) -> list[list[str]]:
        """A table of texts, its header first."""
        header = ["tokens there are", "repeats", "share wanted", "share got", "tokens read"]
        read = max(self.read, 1)
        return [[self.by, *header, *self.groups[0].quadrants]] + [
            [
                "none" if group.name is None else group.name,
                f"{group.tokens:,}",
                f"{group.repeats:.4g}",
                f"{group.share:.2%}",
                f"{group.read / read:.2%}",
                *(f"{tokens:,}" for tokens in (group.read, *group.quadrants.values())),
            ]
            for group in self.groups
        ]


@dataclass(frozen=True)
class Share:
    """A correlation or a share, an interval of 95% around it, and what it is by chance."""

    value: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class Reliability:
    """How a sample of documents fares under other reference models.

    Attributes:
        compared_with: `half`, the same models at half of their training, `replica`, those of
            another seed, or `third`, the weak one and a third.
        domain: None for all.
        ppl: Spearman's correlation of the documents' ranks by PPL inside their groups.
        pd: That of PD.
        quadrant: Share of the tokens that are in the same quadrant.
        ppl_bin: In the same bin of PPL.
        pd_bin: In the same bin of PD.
    """

    compared_with: str
    domain: str | None
    documents: int
    ppl: Share
    pd: Share
    quadrant: Share
    ppl_bin: Share
    pd_bin: Share

    @property
    def of_models(self) -> str:
        """What is compared with, in words."""
        return {
            "half": "the reference models at half of their training",
            "replica": "reference models of another seed",
            "third": "a third model in the strong one's place (at most: the weak one is shared)",
        }[self.compared_with]

    def line(self) -> list[str]:
        """A line of texts under RELIABILITY_HEADER."""
        shares = (self.quadrant, self.ppl_bin, self.pd_bin)
        return [
            self.compared_with + " (at most)" * (self.compared_with == "third"),
            self.domain or "all",
            f"{self.documents:,}",
            *(f"{s.value:.2f} ({s.low:.2f} to {s.high:.2f})" for s in (self.ppl, self.pd)),
            *(f"{s.value:.0%} ± {(s.high - s.low) / 2:.0%} ({s.chance:.0%})" for s in shares),
        ]


RELIABILITY_HEADER = ["with", "domain", "documents", "PPL", "PD", "quadrant", "PPL bin", "PD bin"]


@dataclass(frozen=True)
class PartitionRecord:
    """What report, export and inspection need to know of a partition.

    Attributes:
        ppl_model: The reference model that PPL is of; None where scores were imported.
        axes: Bins of `ppl` and `pd`.
        names: What the two axes are called.
        group_by: Columns whose combinations are the groups.
        without_quadrant: Documents without a quadrant, by split and reason.
        thin_groups: Groups whose thresholds say little.
        tied: Share of the training tokens in documents whose value equals a threshold, by axis.
        quadrants: Contents of all groups together.
        mixture: How often documents are read; None where each is read once.
    """

    ppl_model: str | None
    mode: str
    axes: dict[str, int]
    names: tuple[str, str]
    group_by: tuple[str, ...]
    without_quadrant: dict[str, dict[str, DocumentCount]]
    thin_groups: ThinGroups
    tied: dict[str, float]
    quadrants: dict[str, QuadrantContents]
    groups: tuple[GroupRecord, ...]
    warnings: tuple[str, ...] = ()
    mixture: Mixture | None = None
    reliability: tuple[Reliability, ...] = ()

    @property
    def documents(self) -> int:
        """Number of training documents that have a quadrant and are read."""
        return sum(quadrant.documents for quadrant in self.quadrants.values())

    def to_json(self) -> dict[str, Any]:
        """The object in the file, whose groups have the columns of `group_by` alone."""
        value, keys = dataclasses.asdict(self), (*self.group_by, "thresholds", "quadrants")
        return value | {"groups": [{key: g[key] for key in keys} for g in value["groups"]]}


def read_partition_record(directory: RunDirectory) -> PartitionRecord:
    """Reads the record of a run's partition.

    Raises:
        UserError: if the file is damaged or another release's.
    """
    return read_dataclass(directory.partition, PartitionRecord)


def require_quadrants(directory: RunDirectory, path: Path) -> None:
    """Refuses a run without this file, which the partition phase writes."""
    if not path.exists():
        raise UserError(
            f"{directory.root} has no quadrants ({path} is missing): run the phases up to "
            "partition first (python -m frame_jax.main --config CONFIG --until partition)"
        )
