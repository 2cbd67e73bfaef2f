"""A plan in, the documents in the order in which training here reads them out: order.parquet.

One line a training document, sorted: position (from 0), doc_id, quadrant, stage, weight (the share
of its quadrant at that place of the curriculum), step (the optimizer step here that reads its first
token), tokens, source, domain, language, ppl, pd, part and row (where its tokens lie in the run).
A later epoch has the same stages with other shuffles. Documents that a shortened run does not reach
are left out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.config.run import RunConfig
from frame_jax.export.order.plan import Plan
from frame_jax.quadrants.packing import best_fit, concat
from frame_jax.quadrants.rows import listed, training_documents
from frame_jax.run.directory import RunDirectory, read_json
from frame_jax.sql import database, parquet, write_parquet

ROWS_AT_ONCE = 1 << 20

NOTES = """# Curriculum {curriculum}

`order.parquet`: the training documents in the order in which this run's training reads them, with
quadrant, stage, weight (the share of the quadrant at that place) and step. `part` and `row` say
where the tokens lie in the run directory (`tokens/part-*.arrayrecord`). To use the order elsewhere,
keep it: read documents by `position`, pack them in that order and do not shuffle across stages.
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
            SELECT row_number() OVER (ORDER BY places.place, first_rows.number) - 1 AS position,
                doc_id, quadrant, stage, weight, step, tokens, source, domain, language, ppl,
                pd, part, row
            FROM {parquet(*sorted(scratch.glob("documents-*.parquet")))} first_rows
            JOIN {parquet(*sorted(scratch.glob("places-*.parquet")))} places USING (cell, cell_row)
            JOIN {parquet(directory.assignment)} USING (part, row)
            ORDER BY position
            """
        connection.execute(write_parquet(order, folder / "order.parquet", "zstd"))
    for path in scratch.iterdir():
        path.unlink()
    scratch.rmdir()
    (folder / "NOTES.md").write_text(NOTES.format(curriculum=plan.curriculum), "utf-8")


def write_first_rows(
    config: RunConfig, directory: RunDirectory, cells: tuple[str, ...], scratch: Path
) -> None:
    """The row of its cell in which each document begins: cell, cell_row, number, part, row.

    Packs lengths as the partition phase has packed the documents.
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
            before[cell] += packed.rows


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
