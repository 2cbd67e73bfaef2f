"""A plan in, the documents in the order in which training here reads them out: order.parquet.

One line a training document, sorted: rank (from 0), doc_id, quadrant, stage, weight (the share of
its quadrant at that place of the curriculum), step (the optimizer step here that reads its first
token), tokens, source, domain, language, ppl, pd, part and row (where its tokens lie in the run).
A later epoch has the same stages with other shuffles. Documents that a shortened run does not reach
are left out. docs/order.md says how far a trainer that follows the order deviates, and why.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.config.run import RunConfig
from frame_jax.export.order.plan import Plan
from frame_jax.quadrants.packing import Pieces, best_fit, concat
from frame_jax.quadrants.rows import listed, training_documents
from frame_jax.run.directory import RunDirectory, read_json
from frame_jax.sql import database, parquet, write_parquet

ROWS_AT_ONCE = 1 << 20

NOTES = """# Curriculum {curriculum}

`order.parquet`: the training documents in the order in which this run's training comes to their
first tokens, each once, with rank, quadrant, stage, weight (the share of the quadrant at that
place), PPL, PD and step. Join your texts on `doc_id`; `part` and `row` say where the tokens lie in
the run directory (`tokens/part-*.arrayrecord`), and `--shards` writes texts. To use the order
elsewhere, keep it: read documents by `rank`, pack them in that order and do not shuffle across
stages.

A row here holds pieces of documents, and a piece that is not its document's first may be read
earlier or later than the document. Whoever reads whole documents in this order has, after any row,
read of each quadrant as many text tokens as training here, but for at most those in such pieces:

| quadrant | text tokens | in other pieces than the first |
|---|---:|---:|
{quadrants}

What that comes to at the ends of the stages, in text tokens of an epoch:

| stage | here | by documents | difference |
|---|---:|---:|---:|
{stages}

Steps of another size move an end by less than one of them. Another tokenizer changes the lengths of
documents, not their order: let the stages be those of `stage`, not counts of tokens.
"""


def write_documents(config: RunConfig, directory: RunDirectory, plan: Plan, folder: Path) -> None:
    """Writes order.parquet and NOTES.md to `folder`; memory does not grow with the corpus."""
    with database(folder) as connection:
        scratch = folder / ".rows"
        scratch.mkdir()
        write_first_rows(config, directory, plan.schedule.cells, scratch)
        write_places(plan, config.pretrain.training.batch_rows, scratch)
        connection.execute("SET preserve_insertion_order = true")
        order = f"""
            SELECT row_number() OVER (ORDER BY places.place, first_rows.number) - 1 AS rank,
                doc_id, quadrant, stage, weight, step, tokens, source, domain, language, ppl,
                pd, part, row
            FROM {parquet(*sorted(scratch.glob("documents-*.parquet")))} first_rows
            JOIN {parquet(*sorted(scratch.glob("places-*.parquet")))} places USING (cell, cell_row)
            JOIN {parquet(directory.assignment)} USING (part, row)
            ORDER BY rank
            """
        connection.execute(write_parquet(order, folder / "order.parquet", "zstd"))
        notes = NOTES.format(
            curriculum=plan.curriculum,
            quadrants=cut_table(connection, plan, scratch),
            stages=stage_table(connection, plan, folder / "order.parquet", scratch),
        )
    for path in scratch.iterdir():
        path.unlink()
    scratch.rmdir()
    (folder / "NOTES.md").write_text(notes, "utf-8")


def cut_table(connection: duckdb.DuckDBPyConnection, plan: Plan, scratch: Path) -> str:
    """Text tokens of each quadrant, and those that are not in their document's first row."""
    rows = parquet(*sorted(scratch.glob("rows-*.parquet")))
    found = connection.execute(
        f"SELECT cell, sum(tokens), sum(cut) FROM {rows} GROUP BY cell ORDER BY cell"
    ).fetchall()
    return "\n".join(
        f"| {plan.schedule.cells[cell]} | {tokens:,} | {cut:,} ({cut / max(tokens, 1):.1%}) |"
        for cell, tokens, cut in found
    )


def stage_table(
    connection: duckdb.DuckDBPyConnection, plan: Plan, order: Path, scratch: Path
) -> str:
    """Text tokens of each stage, as rows read them and as whole documents do."""
    rows = parquet(*sorted(scratch.glob("rows-*.parquet")))
    places = parquet(*sorted(scratch.glob("places-*.parquet")))
    by_rows = dict(
        connection.execute(
            f"SELECT stage, sum(tokens) FROM {rows} JOIN {places} USING (cell, cell_row) GROUP BY 1"
        ).fetchall()
    )
    by_documents = dict(
        connection.execute(f"SELECT stage, sum(tokens) FROM {parquet(order)} GROUP BY 1").fetchall()
    )
    lines = []
    for name in dict.fromkeys(stage.name for stage in plan.schedule.stages):
        here, there = by_rows.get(name, 0), by_documents.get(name, 0)
        lines.append(f"| {name} | {here:,} | {there:,} | {there / max(here, 1) - 1:+.1%} |")
    return "\n".join(lines)


def write_first_rows(
    config: RunConfig, directory: RunDirectory, cells: tuple[str, ...], scratch: Path
) -> None:
    """The row of its cell in which each document begins: cell, cell_row, number, part, row.

    And of each row: cell, cell_row, tokens (of text), cut (those of documents that begin in another
    row). Packs lengths as the partition phase has packed the documents.
    """
    special = read_json(directory.tokenizer.with_name("special_tokens.json"))
    framing = 1 if special["bos_id"] == special["eos_id"] else 2
    rows_config = config.partition.rows
    pack = concat if rows_config.packing == "concat" else best_fit
    conditions, parts = training_documents(cells), rows_config.parts
    units = [(cell, part) for cell in cells for part in range(parts)]
    before = dict.fromkeys(cells, 0)
    with listed(
        [directory.assignment], conditions, units, parts, config.seed, scratch.parent
    ) as select:
        for cell, part in units:
            documents = select(cell, part)
            packed = pack(documents.tokens + framing, rows_config.sequence_length + 1)
            first = np.full(len(documents.tokens), np.iinfo(np.int64).max)
            np.minimum.at(first, packed.document, packed.row)
            index = cells.index(cell)
            columns = {
                "cell": np.full(len(first), index, np.int32),
                "cell_row": before[cell] + first,
                "number": np.arange(len(first)),
                "part": documents.part.astype(np.int32),
                "row": documents.row,
            }
            pq.write_table(pa.table(columns), scratch / f"documents-{index}-{part:05d}.parquet")
            tokens, cut = row_tokens(packed, documents.tokens)
            columns = {
                "cell": np.full(packed.rows, index, np.int32),
                "cell_row": before[cell] + np.arange(packed.rows),
                "tokens": tokens,
                "cut": cut,
            }
            pq.write_table(pa.table(columns), scratch / f"rows-{index}-{part:05d}.parquet")
            before[cell] += packed.rows


def row_tokens(packed: Pieces, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Text tokens of each row, and those of them whose document begins in another row.

    Args:
        packed: Which piece of which document is in which row.
        tokens: Text tokens of each document.

    Returns:
        int64 [rows], twice.
    """
    first, stop = packed.text(tokens)
    begins = np.full(len(tokens), packed.rows)
    np.minimum.at(begins, packed.document, packed.row)
    cut = np.where(packed.row == begins[packed.document], 0, stop - first)
    whole, others = np.zeros((2, packed.rows), np.int64)
    np.add.at(whole, packed.row, stop - first)
    np.add.at(others, packed.row, cut)
    return whole, others


def write_places(plan: Plan, batch_rows: int, scratch: Path) -> None:
    """What the first epoch does with each row: cell, cell_row, place, stage, weight, step."""
    schedule, selection = plan.schedule, plan.selection
    names = np.array([stage.name for stage in schedule.stages])
    stops = np.array([stage.stop for stage in schedule.stages])
    asked = np.diff(schedule.cumulative(selection.edges), axis=0)
    weights = asked / np.diff(selection.edges)[:, None]
    for start in range(0, schedule.epoch_rows, ROWS_AT_ONCE):
        place = np.arange(start, min(start + ROWS_AT_ONCE, schedule.epoch_rows))
        cells, rows = selection.select(place)
        block = np.searchsorted(selection.edges, place, side="right") - 1
        columns = {
            "cell": cells.astype(np.int32),
            "cell_row": rows,
            "place": place,
            "stage": names[np.searchsorted(stops, place, side="right")],
            "weight": weights[block, cells],
            "step": place // batch_rows,
        }
        pq.write_table(pa.table(columns), scratch / f"places-{start:012d}.parquet")
