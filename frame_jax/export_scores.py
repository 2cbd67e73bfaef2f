"""Exports the scores of all documents as one table: `python -m frame_jax.export_scores`.

One table, Parquet or JSON lines, with a line for each document of the splits train and held_out, in
the order of the run's token files. docs/scoring.md says what its columns hold.
"""

import argparse

from frame_jax.config.file import load
from frame_jax.config.paths import user_path
from frame_jax.config.scoring import ScoringConfig
from frame_jax.errors import UserError
from frame_jax.run import integrity
from frame_jax.run.directory import RunDirectory, atomic_path, list_parts, require_writable
from frame_jax.run.partition_record import require_quadrants
from frame_jax.run.program_exit import run_command, run_main
from frame_jax.sql import open_database, parquet_table, write_json_lines, write_parquet

WRITERS = {
    ".parquet": lambda query, path: write_parquet(query, path, "zstd"),
    ".jsonl": write_json_lines,
}


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = argparse.ArgumentParser(
        prog="python -m frame_jax.export_scores",
        description="Write the scores of every document into one table.",
    )
    options.add_argument("run", help="run directory, partitioned")
    options.add_argument("--out", required=True, help="new file, NAME.parquet or NAME.jsonl")
    return options


def write_scores(options: argparse.Namespace) -> None:
    """Writes `options.out`, which appears whole or not at all; memory does not grow with the
    corpus.

    Raises:
        UserError: if the run is not partitioned, its scores or quadrants are damaged, or `out` is
            taken or of no known format.
    """
    directory, out = RunDirectory(options.run), user_path(options.out)
    require_quadrants(directory, directory.partition)
    if out.suffix not in WRITERS:
        raise UserError(f"--out {out}: its name must end in {' or '.join(WRITERS)}")
    if out.exists():
        raise UserError(f"{out} is there already: choose another --out, or remove it")
    integrity.verify_checksums(directory, ["score", "partition"], integrity.HASHED)
    if not list_parts(directory.scores, ".parquet"):
        raise UserError(
            f"{directory.scores} has no parts: have them made again (--redo score), or put them "
            "back"
        )
    query = scores_query(load(directory.config).scoring, directory)
    require_writable(out.parent, "--out")
    with atomic_path(out) as temporary, open_database(out.parent) as connection:
        connection.execute("SET preserve_insertion_order = true")
        connection.execute(WRITERS[out.suffix](query, temporary))
    print(f"scores: {options.out}")


def scores_query(scoring: ScoringConfig, directory: RunDirectory) -> str:
    """SQL for the table of scores."""
    # Of a model in the parts of RUN/scores: its predicted tokens and the sum of their NLL.
    tokens, nll = "predicted_tokens", "nll_{name}"
    if scoring.table is not None:
        tokens, nll = "NULL", "NULL::DOUBLE"
    elif scoring.unit == "byte":
        tokens = "predicted_tokens_{name}"
    stored = f"{tokens} AS predicted_tokens_{{name}}, {nll} AS nll_{{name}}"
    models = ", ".join(
        f"predicted_tokens_{name}::BIGINT AS predicted_tokens_{name}, nll_{name}, "
        f"nll_{name} / nullif(predicted_tokens_{name}, 0) AS loss_{name}, "
        f"nll_{name} / (bytes * ln(2)) AS bits_per_byte_{name}"
        for name in ("weak", "strong")
    )
    ranks = ", ".join(
        f"CASE WHEN {axis} IS NOT NULL THEN percent_rank() OVER "
        f"(PARTITION BY split, {axis} IS NULL ORDER BY {axis}) END AS {axis}_rank"
        for axis in ("ppl", "pd")
    )
    return f"""
        SELECT doc_id, split, source, domain, language, tokens, bytes, {models}, ppl, pd, {ranks},
            quadrant, copies
        FROM {parquet_table(directory.assignment)} LEFT JOIN (
            SELECT doc_id, {stored.format(name="weak")}, {stored.format(name="strong")}
            FROM {parquet_table(*list_parts(directory.scores, ".parquet"))}) USING (doc_id)
        ORDER BY part, row
        """


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for bad input."""
    return run_command(parser(), write_scores, arguments)


if __name__ == "__main__":
    run_main(main)
