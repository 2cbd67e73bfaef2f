"""Public function that assigns the documents of a table to quadrants."""

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from frame_jax.config.quadrants import AxesConfig, PartitionConfig
from frame_jax.config.scoring import ScoringConfig, TableConfig
from frame_jax.errors import UserError
from frame_jax.run.directory import RunDirectory, part_name

GROUP_COLUMNS = ("domain", "language", "source")


class Partition(NamedTuple):
    """Documents in quadrants.

    Attributes:
        quadrants: [documents] objects: the name of each document's quadrant, None for one without
            a finite score or tokens, or with no training document in its language.
        groups: For each group of documents: its columns, its `thresholds` (where each bin but the
            first begins on either axis) and the contents of its quadrants.
        warnings: Why the quadrants may mean little; empty where nothing was found.
    """

    quadrants: np.ndarray
    groups: list[dict[str, Any]]
    warnings: list[str]


def partition_table(
    table: pa.Table | Mapping[str, Any],
    *,
    group_by: Sequence[str] | None = None,
    axes: tuple[int, int] = (2, 2),
    mode: Literal["nested", "independent"] = "nested",
    min_group_tokens: int = 0,
) -> Partition:
    """Assigns every document of a table to a quadrant, as the partition phase does.

    Thresholds are medians weighted by tokens: of `ppl` inside each group, then of `pd` inside each
    half. Documents with equal numbers are ordered by their ids.

    Args:
        table: Columns of equal length, one line a document: `ppl`, `pd` (any two numbers) and
            `tokens`; where they are there also `doc_id`, `domain`, `language`, `source`, and
            `split` (`train`, or `held_out` for documents that shape no threshold).
        group_by: Columns whose combinations have thresholds of their own; by default those of
            `domain` and `language` that are there.
        axes: Bins of `ppl` and of `pd`.
        mode: `nested`, or `independent` for marginal thresholds on both axes.
        min_group_tokens: Groups with fewer tokens share the thresholds of their language.

    Raises:
        UserError: for a column that is not there, no document with finite numbers, or numbers that
            do not tell documents apart.

    Examples:
        >>> import frame_jax
        >>> scores = {"ppl": [20, 30, 10, 40], "pd": [0.1, 0.2, 0.3, 0.4], "tokens": [5, 5, 5, 5]}
        >>> partition = frame_jax.partition_table(scores)
        >>> partition.quadrants
        array(['Q1', 'Q3', 'Q2', 'Q4'], dtype=object)
        >>> partition.groups[0]["thresholds"]["ppl"]
        [{'value': 30.0, 'doc_id': '1'}]
    """
    from frame_jax.quadrants.partition import write_assignment

    columns = table if isinstance(table, pa.Table) else pa.table(dict(table))
    if group_by is None:
        group_by = [name for name in ("domain", "language") if name in columns.column_names]
    unknown = [name for name in group_by if name not in GROUP_COLUMNS]
    if unknown:
        raise UserError(f"group_by: {', '.join(unknown)}: choose of {', '.join(GROUP_COLUMNS)}")
    for name in ("ppl", "pd", "tokens", *group_by):
        if name not in columns.column_names:
            found = ", ".join(columns.column_names)
            raise UserError(f"the table has no column {name!r}; it has: {found}")
    settings = PartitionConfig(
        mode=mode,
        group_by=list(group_by),  # type: ignore[arg-type]
        axes=AxesConfig(*axes),
        min_group_tokens=min_group_tokens,
    )
    scoring = ScoringConfig(table=TableConfig(path="table", ppl="ppl", pd="pd"))
    with tempfile.TemporaryDirectory(prefix="frame_jax-") as folder:
        directory = RunDirectory(folder)
        _write_table(columns, directory)
        record = write_assignment(settings, scoring, directory)
        assigned = pq.read_table(directory.assignment, columns=["row", "quadrant"])
    quadrants = np.full(len(columns), None, object)
    quadrants[assigned["row"].to_numpy()] = assigned["quadrant"].to_pylist()
    return Partition(quadrants, record.to_json()["groups"], list(record.warnings))


def _write_table(columns: pa.Table, directory: RunDirectory) -> None:
    """The table as the tokenize and the score phase would have left it, in one part."""
    count = len(columns)
    digits = len(str(count))
    defaults = {
        "doc_id": [f"{row:0{digits}d}" for row in range(count)],  # ordered as the lines are
        "split": ["train"] * count,
        **dict.fromkeys(GROUP_COLUMNS, [None] * count),
    }
    given = {
        name: _cast(columns, name, pa.string()) for name in defaults if name in columns.schema.names
    }
    texts = {name: pa.array(default, pa.string()) for name, default in defaults.items()} | given
    if len(pc.unique(texts["doc_id"])) < count or texts["doc_id"].null_count:
        raise UserError("the column 'doc_id' must hold an id of its own for every document")
    tokens = {
        **texts,
        "part": np.zeros(count, np.int32),
        "row": np.arange(count),
        "tokens": _cast(columns, "tokens", pa.int64()),
        "bytes": np.zeros(count, np.int64),
    }
    scores = {
        "doc_id": texts["doc_id"],
        **{name: _cast(columns, name, pa.float64()) for name in ("ppl", "pd")},
    }
    for folder, content in ((directory.tokens, tokens), (directory.scores, scores)):
        folder.mkdir()
        pq.write_table(pa.table(content), folder / part_name(0, 1, ".parquet"))


def _cast(columns: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        return columns[name].cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"the column {name!r} does not hold {kind}: {error}") from error
