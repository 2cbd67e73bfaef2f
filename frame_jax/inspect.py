"""Shows documents of a quadrant with their scores: `python -m frame_jax.inspect RUN --quadrant Q2`.

Reads `quadrants/assignment.parquet` and the token files of a run directory; writes to the terminal.
This is how one comes to trust or to doubt a partition.
"""

import argparse
from typing import Any

import duckdb
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from frame_jax.corpus.tokenizer import load_tokenizer
from frame_jax.errors import UserError, printable
from frame_jax.records import read_documents
from frame_jax.run import integrity
from frame_jax.run.directory import RunDirectory, list_parts
from frame_jax.run.partition_record import read_partition_record, require_quadrants
from frame_jax.run.program_exit import positive, run_command, run_main
from frame_jax.sql import parquet_table

ORDERS = {
    "random": "md5(doc_id || $seed)",
    "highest-ppl": "ppl DESC, doc_id",
    "lowest-ppl": "ppl, doc_id",
    "highest-pd": "pd DESC, doc_id",
    "lowest-pd": "pd, doc_id",
}
COLUMNS = "doc_id, quadrant, ppl, pd, split, source, domain, language, tokens, part, row, copies"


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = argparse.ArgumentParser(
        prog="python -m frame_jax.inspect", description="Show documents of a quadrant."
    )
    options.add_argument("run", help="run directory, partitioned")
    options.add_argument("--quadrant", help="such as Q2; all by default")
    options.add_argument("--domain", help="only documents of this domain")
    options.add_argument("--language", help="only documents of this language")
    options.add_argument("--source", help="only documents of this source")
    options.add_argument("--split", default="train", choices=("train", "held_out"))
    options.add_argument("-n", type=positive, default=5, help="documents shown (default: 5)")
    options.add_argument(
        "--by",
        choices=ORDERS,
        default="random",
        help="which documents: a random choice, or one end of an axis",
    )
    options.add_argument("--seed", default="0", help="another seed, another random choice")
    options.add_argument(
        "--characters", type=positive, default=600, help="of each text (default: 600)"
    )
    return options


def choose_documents(directory: RunDirectory, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Chooses the documents to show: rows of the assignment.

    Raises:
        UserError: if the run is not partitioned, what was made then is damaged, or nothing matches.
    """
    require_quadrants(directory, directory.partition)
    integrity.verify_checksums(directory, ["partition"], integrity.HASHED)
    wanted = {
        name: getattr(options, name)
        for name in ("quadrant", "domain", "language", "source", "split")
        if getattr(options, name) is not None
    }
    conditions = " AND ".join(f"{name} = ${name}" for name in wanted)
    seed = {"seed": options.seed} if "$seed" in ORDERS[options.by] else {}
    assignment = parquet_table(directory.assignment)
    with duckdb.connect() as connection:
        rows = connection.sql(
            f"SELECT {COLUMNS} FROM {assignment} "
            f"WHERE quadrant IS NOT NULL AND {conditions} "
            f"ORDER BY {ORDERS[options.by]} LIMIT $n",
            params={"n": options.n, **wanted, **seed},
        ).to_arrow_table()
        if not rows:
            known = connection.execute(
                f"SELECT DISTINCT quadrant, domain, language FROM {assignment} "
                "WHERE quadrant IS NOT NULL ORDER BY ALL LIMIT 40"
            ).fetchall()
            there = "; ".join(" ".join(str(value) for value in row) for row in known)
            asked = ", ".join(f"{name} {value}" for name, value in wanted.items())
            raise UserError(f"no document has {asked}; there are: {there}")
    return rows.to_pylist()


def show_documents(options: argparse.Namespace) -> None:
    """Prints each document with its scores above the beginning of its text."""
    directory, console = RunDirectory(options.run), Console(highlight=False)
    rows = choose_documents(directory, options)
    ppl, pd = read_partition_record(directory).names
    tokenizer = load_tokenizer(directory)
    parts = list_parts(directory.tokens, ".arrayrecord")
    for row in rows:
        [ids] = read_documents(parts[row["part"]], [row["row"]])
        # A token is at least one byte.
        text = tokenizer.decode(ids[: options.characters])[: options.characters]
        title = f"{row['quadrant']}  {ppl} {row['ppl']:,.2f}  {pd} {row['pd']:+.4f}"
        origin = f"{row['source']} / {row['domain']} / {row['language']}, {row['tokens']:,} tokens"
        if row["copies"] != (row["split"] == "train"):
            origin += f", {row['copies']} times an epoch"
        console.print(
            Panel(
                Text(printable(text)),
                title=Text(printable(title)),
                subtitle=Text(printable(f"{row['doc_id']}  {origin}")),
                title_align="left",
                subtitle_align="left",
            )
        )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for bad input."""
    return run_command(parser(), show_documents, arguments)


if __name__ == "__main__":
    run_main(main)
