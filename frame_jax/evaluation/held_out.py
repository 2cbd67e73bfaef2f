"""The evaluation phase: kept checkpoints and the held-out split in, their losses out.

Reads RUN/pretrain/<curriculum>/, RUN/tokens and RUN/quadrants/assignment.parquet. Writes
RUN/evaluation/<curriculum>/<step>/part-*.parquet (one row a held-out document: doc_id,
predicted_tokens, nll, a sum in nats) and from them RUN/evaluation/<curriculum>.json and
RUN/evaluation/<curriculum>/tensorboard. Every arm is scored on the same documents, from their own
starts, as in `frame_jax.scoring`. Where the config has multiple-choice tasks,
`frame_jax.evaluation.tasks` runs them, and says what the file has of them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from frame_jax import checkpoints
from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError
from frame_jax.evaluation import tasks
from frame_jax.evaluation.board import write_board
from frame_jax.evaluation.checkpoint_scorer import checkpoint_scorers
from frame_jax.parallel import processes
from frame_jax.run import progress
from frame_jax.run.directory import (
    RunDirectory,
    atomic_path,
    list_parts,
    read_json,
    write_json,
)
from frame_jax.scoring.documents import BatchScores, Scores, score_documents
from frame_jax.scoring.score import read_documents
from frame_jax.sql import parquet

DIMENSIONS = ("domain", "language", "quadrant")


def run(config: RunConfig, directory: RunDirectory, curriculum: str) -> dict[str, Any]:
    """Evaluates every kept checkpoint of a curriculum; called on every process.

    Returns:
        The final checkpoint's step, held-out NLL per token and bits per byte.

    Raises:
        UserError: if there is no held-out document, a checkpoint is missing, or a loss is not
            finite.
    """
    documents = held_out_documents(directory, config.evaluation.max_documents)
    plan = read_json(directory.pretrain(curriculum) / "curriculum.json")
    steps = require_kept(directory, curriculum, plan["kept_steps"])
    missing = {
        step: [
            part
            for part in documents
            if not scores_path(directory, curriculum, step, part).exists()
        ]
        for step in steps
    }
    # Every process sees the same missing parts, because none writes before all have looked.
    processes.barrier(f"evaluate {curriculum}: parts listed")
    if any(missing.values()):
        score_missing(config, directory, curriculum, documents, missing)
    processes.barrier(f"evaluate {curriculum}: parts written")
    scores = tasks.run(config, directory, curriculum, plan)
    if processes.is_first():
        measured = result(directory, curriculum, plan, steps)
        measured["average"] = config.evaluation.average
        if scores:
            measured["tasks"] = scores
        write_board(directory.evaluation(curriculum).with_suffix(""), measured)
        write_json(directory.evaluation(curriculum), measured)
    processes.barrier(f"evaluate {curriculum}: result written")
    last = read_json(directory.evaluation(curriculum))["checkpoints"][-1]
    overall = last["overall"]
    return {
        "step": last["step"],
        "nll_per_token": overall["nll_per_token"],
        "bits_per_byte": overall["bits_per_byte"],
    }


def scores_path(directory: RunDirectory, curriculum: str, step: int, tokens_part: str) -> Path:
    folder = directory.evaluation(curriculum).with_suffix("") / str(step)
    return folder / f"{tokens_part}.parquet"


def held_out_documents(directory: RunDirectory, max_documents: int | None) -> dict[str, pa.Table]:
    """The documents to score: doc_id, row, tokens, by the token shard (its stem) they lie in.

    Args:
        directory: The run.
        max_documents: Take the first of them by a hash of their ids; None takes all.

    Raises:
        UserError: if there is none.
    """
    tokens = list_parts(directory.tokens, ".parquet")
    with duckdb.connect() as connection:
        table = connection.sql(
            f"""
            SELECT doc_id, part, row, tokens FROM {parquet(*tokens)}
            WHERE split = 'held_out' AND tokens > 0 ORDER BY md5(doc_id), doc_id LIMIT ?
            """,
            params=[max_documents],
        ).to_arrow_table()
    if table.num_rows == 0:
        raise UserError(
            f"{directory.tokens}: no held-out document has a token; raise "
            "corpus.held_out_fraction, or give a larger corpus"
        )
    stems = [path.stem for path in tokens]
    table = table.sort_by([("part", "ascending"), ("row", "ascending")])
    return {
        stems[part]: table.filter(pc.equal(table["part"], part))
        for part in table["part"].unique().to_pylist()
    }


def require_kept(directory: RunDirectory, curriculum: str, kept_steps: list[int]) -> list[int]:
    """The steps to evaluate, ascending.

    Raises:
        UserError: if the checkpoint of one is missing.
    """
    folder = directory.pretrain(curriculum) / "checkpoints"
    lost = sorted(set(kept_steps) - set(checkpoints.saved_steps(folder)))
    if lost:
        raise UserError(
            f"{folder}: the checkpoint of step {lost[0]} is missing; train this arm again with "
            f"--redo pretrain-{curriculum}"
        )
    return sorted(kept_steps)


def score_missing(
    config: RunConfig,
    directory: RunDirectory,
    curriculum: str,
    documents: dict[str, pa.Table],
    missing: dict[int, list[str]],
) -> None:
    """Writes the scores of this process's share of the missing parts of every checkpoint."""
    folder = directory.pretrain(curriculum)
    bos_id = read_json(directory.tokenizer.with_name("special_tokens.json"))["bos_id"]
    share = processes.mine([(step, part) for step, parts in missing.items() for part in parts])
    total = sum(pc.sum(documents[part]["tokens"]).as_py() for _, part in share)
    title = f"evaluate {curriculum}"
    with progress.bar(title, total, "tokens", show=processes.is_first()) as update:
        # All processes load a checkpoint together, those without a share of it too.
        steps = [step for step, parts in missing.items() if parts]
        average = config.evaluation.average
        for step, scorer in checkpoint_scorers(config.scoring, folder, steps, average=average):

            def report(batch: BatchScores, step: int = step) -> None:
                update(batch.tokens, f"step {step:,}")

            for part in (part for at, part in share if at == step):
                write_part(
                    scores_path(directory, curriculum, step, part),
                    documents[part]["doc_id"],
                    score_documents(
                        scorer,
                        read_documents(
                            directory.tokens / f"{part}.arrayrecord",
                            documents[part]["row"].to_numpy(),
                        ),
                        bos_id=bos_id,
                        overlap=config.scoring.overlap,
                        report=report,
                    ),
                )


def write_part(path: Path, doc_id: pa.ChunkedArray, scores: Scores) -> None:
    """Writes the held-out losses of one token shard's documents.

    Raises:
        UserError: if one of them is not finite.
    """
    if not np.isfinite(scores.nll).all():
        raise UserError(
            f"{path.parent}: the held-out loss of this checkpoint is not a number, so its training "
            "has diverged; lower pretrain.training.schedule.peak and train again"
        )
    columns = {
        "doc_id": doc_id,
        "predicted_tokens": scores.predicted_tokens,
        "nll": scores.nll[0],
    }
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


def result(
    directory: RunDirectory, curriculum: str, plan: dict[str, Any], steps: list[int]
) -> dict[str, Any]:
    """What RUN/evaluation/<curriculum>.json holds, but for `average` and `tasks`.

    Returns:
        curriculum, and for each checkpoint its step, the training tokens it has seen, and
        measurements (see `measure`) overall and by domain, language and quadrant.
    """
    tokens_per_step = plan["batch_rows"] * plan["sequence_length"]
    return {
        "curriculum": curriculum,
        "checkpoints": [
            {"step": step, "tokens": step * tokens_per_step, **measure(directory, curriculum, step)}
            for step in steps
        ],
    }


def measure(directory: RunDirectory, curriculum: str, step: int) -> dict[str, Any]:
    """Sums over held-out documents of one checkpoint.

    Returns:
        `overall`, and `domain`, `language`, `quadrant` by value: documents, predicted_tokens,
        bytes (UTF-8), nll (sum, nats), nll_per_token (nats), bits_per_byte. Documents without a
        quadrant count everywhere but there.
    """
    folder = directory.evaluation(curriculum).with_suffix("") / str(step)
    scores, tokens = (list_parts(place, ".parquet") for place in (folder, directory.tokens))
    found: dict[str, Any] = {"overall": {}, **{dimension: {} for dimension in DIMENSIONS}}
    with duckdb.connect() as connection:
        rows = connection.execute(
            f"""
            SELECT GROUPING_ID(domain, language, quadrant) AS grouping, domain, language, quadrant,
                   count(*), CAST(sum(predicted_tokens) AS BIGINT), CAST(sum(bytes) AS BIGINT),
                   sum(nll)
            FROM {parquet(*scores)}
            JOIN (SELECT doc_id, domain, language, bytes FROM {parquet(*tokens)}
                  WHERE split = 'held_out') USING (doc_id)
            LEFT JOIN (SELECT doc_id, quadrant FROM {parquet(directory.assignment)}
                       WHERE split = 'held_out') USING (doc_id)
            GROUP BY GROUPING SETS ((), (domain), (language), (quadrant))
            ORDER BY ALL
            """
        ).fetchall()
    for grouping, *values, documents, tokens, size, nll in rows:
        measured = {
            "documents": documents,
            "predicted_tokens": tokens,
            "bytes": size,
            "nll": nll,
            "nll_per_token": nll / tokens,
            "bits_per_byte": nll / (size * math.log(2)),
        }
        present = [i for i in range(3) if not grouping >> (2 - i) & 1]
        if not present:
            found["overall"] = measured
        elif values[present[0]] is not None:
            found[DIMENSIONS[present[0]]][values[present[0]]] = measured
    return found
