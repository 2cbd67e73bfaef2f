"""The evaluation phase: kept checkpoints and the held-out split in, their losses out.

Reads RUN/pretrain/<trial>/, RUN/tokens and RUN/quadrants/assignment.parquet. Writes
RUN/evaluation/<trial>/<weights>/part-*.parquet (one row a held-out document: doc_id,
predicted_tokens, nll, a sum in nats; weights are a step, or `average-...`) and from them
RUN/evaluation/<trial>.json and RUN/evaluation/<trial>/tensorboard. Every trial is scored on
the same documents, from their own starts, as in `frame_jax.scoring`. Where the config has
multiple-choice tasks, `frame_jax.evaluation.tasks` runs them, and says what the file has of them;
`frame_jax.evaluation.training_rows` does the same for training rows.
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
from frame_jax.evaluation import tasks, training_rows
from frame_jax.evaluation.checkpoint_scorer import Weights, checkpoint_scorers
from frame_jax.evaluation.tensorboard import write_tensorboard
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
from frame_jax.scoring.model_tokenizers import read_documents
from frame_jax.sql import parquet_table

DIMENSIONS = ("domain", "language", "quadrant")


def evaluate_trial(config: RunConfig, directory: RunDirectory, trial: str) -> dict[str, Any]:
    """Evaluates every kept checkpoint of a trial, and its averages; called on every process.

    Returns:
        The final checkpoint's step, held-out NLL per token and bits per byte.

    Raises:
        UserError: if there is no held-out document, a checkpoint is missing, or a loss is not
            finite.
    """
    documents = held_out_documents(directory, config.evaluation.max_documents)
    trial_record = read_json(directory.pretrain(trial) / "curriculum.json")
    means = [Weights.mean(trial_record, ema) for ema in config.evaluation.averages]
    kept = [Weights.of_step(step) for step in sorted(trial_record["kept_steps"])]
    require_kept_checkpoints(
        directory, trial, {step for each in [*kept, *means] for step in each.steps}
    )
    missing = {
        weights: [
            part
            for part in documents
            if not scores_path(directory, trial, weights.name, part).exists()
        ]
        for weights in (*kept, *means)
    }
    # Every process sees the same missing parts, because none writes before all have looked.
    processes.barrier(f"evaluate {trial}: parts listed")
    if any(missing.values()):
        score_missing(config, directory, trial, documents, missing)
    processes.barrier(f"evaluate {trial}: parts written")
    scores = tasks.score_tasks(config, directory, trial, trial_record, means)
    rows = training_rows.measure_training_rows(config, directory, trial)
    if processes.is_first():
        measured = held_out_result(directory, trial, trial_record, kept, means)
        measured["ema"] = config.evaluation.ema
        add_task_scores(measured, scores)
        if rows is not None:
            measured["training_rows"] = rows
        write_tensorboard(directory.evaluation(trial).with_suffix(""), measured)
        write_json(directory.evaluation(trial), measured)
    processes.barrier(f"evaluate {trial}: result written")
    last = read_json(directory.evaluation(trial))["checkpoints"][-1]
    overall = last["overall"]
    return {
        "step": last["step"],
        "nll_per_token": overall["nll_per_token"],
        "bits_per_byte": overall["bits_per_byte"],
    }


def scores_path(directory: RunDirectory, trial: str, weights: str, tokens_part: str) -> Path:
    folder = directory.evaluation(trial).with_suffix("") / weights
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
            SELECT doc_id, part, row, tokens FROM {parquet_table(*tokens)}
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


def add_task_scores(measured: dict[str, Any], scores: list[dict[str, Any]]) -> None:
    """Puts the scores of checkpoints under `tasks`, and those of an average beside its losses."""
    plain = [score for score in scores if "average" not in score]
    if plain:
        measured["tasks"] = plain
    for mean in measured.get("averages", []):
        own = [score for score in scores if score.get("average") == mean["name"]]
        if own:
            mean["tasks"] = own


def require_kept_checkpoints(directory: RunDirectory, trial: str, steps: set[int]) -> None:
    """Refuses a trial one of whose kept checkpoints is gone.

    Raises:
        UserError: if the checkpoint of one is missing.
    """
    folder = directory.pretrain(trial) / "checkpoints"
    lost = sorted(steps - set(checkpoints.saved_steps(folder)))
    if lost:
        raise UserError(
            f"{folder}: the checkpoint of step {lost[0]} is missing; train this trial again with "
            f"--redo pretrain-{trial}"
        )


def score_missing(
    config: RunConfig,
    directory: RunDirectory,
    trial: str,
    documents: dict[str, pa.Table],
    missing: dict[Weights, list[str]],
) -> None:
    """Writes the scores of this process's share of the missing parts of all weights."""
    folder = directory.pretrain(trial)
    bos_id = read_json(directory.tokenizer.with_name("special_tokens.json"))["bos_id"]
    share = processes.local_share(
        [(each, part) for each, parts in missing.items() for part in parts]
    )
    total = sum(pc.sum(documents[part]["tokens"]).as_py() for _, part in share)
    title = f"evaluate {trial}"
    with progress.progress_bar(title, total, "tokens", show=processes.is_first()) as update:
        # All processes load weights together, those without a share of them too.
        wanted = [each for each, parts in missing.items() if parts]
        ema = config.evaluation.ema
        for each, scorer in checkpoint_scorers(config.scoring, folder, wanted, ema=ema):

            def report(batch: BatchScores, name: str = each.name) -> None:
                update(batch.tokens, f"weights {name}")

            for part in (part for at, part in share if at == each):
                write_part(
                    scores_path(directory, trial, each.name, part),
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
            "has diverged; lower pretrain.training.lr_schedule.peak and train again"
        )
    columns = {
        "doc_id": doc_id,
        "predicted_tokens": scores.predicted_tokens,
        "nll": scores.nll[0],
    }
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


def held_out_result(
    directory: RunDirectory,
    trial: str,
    trial_record: dict[str, Any],
    kept: list[Weights],
    means: list[Weights],
) -> dict[str, Any]:
    """What RUN/evaluation/<trial>.json holds, but for `average`, `tasks`, `training_rows`.

    Returns:
        curriculum, and for each checkpoint its step, the training tokens it has seen, and
        measurements (see `measure_held_out`) overall and by domain, language and quadrant; the same
        under `averages` for means of checkpoints, with their `name` and the `steps` they are of,
        where there are any.
    """
    tokens_per_step = trial_record["batch_size"] * trial_record["sequence_length"]

    def line(weights: Weights) -> dict[str, Any]:
        position = {"step": weights.step, "tokens": weights.step * tokens_per_step}
        return position | measure_held_out(directory, trial, weights.name)

    found: dict[str, Any] = {
        "trial": trial,
        "checkpoints": [line(weights) for weights in kept],
    }
    if means:
        found["averages"] = [
            {
                "name": weights.name,
                "steps": list(weights.steps),
                **line(weights),
            }
            for weights in means
        ]
    return found


def measure_held_out(directory: RunDirectory, trial: str, weights: str) -> dict[str, Any]:
    """Sums over held-out documents under the weights of that name.

    Returns:
        `overall`, and `domain`, `language`, `quadrant` by value: documents, predicted_tokens,
        bytes (UTF-8), nll (sum, nats), nll_per_token (nats), bits_per_byte. Documents without a
        quadrant count everywhere but there.
    """
    folder = directory.evaluation(trial).with_suffix("") / weights
    scores, tokens = (
        list_parts(part_folder, ".parquet") for part_folder in (folder, directory.tokens)
    )
    found: dict[str, Any] = {"overall": {}, **{dimension: {} for dimension in DIMENSIONS}}
    with duckdb.connect() as connection:
        rows = connection.execute(
            f"""
            SELECT GROUPING_ID(domain, language, quadrant) AS grouping, domain, language, quadrant,
                   count(*), CAST(sum(predicted_tokens) AS BIGINT), CAST(sum(bytes) AS BIGINT),
                   sum(nll)
            FROM {parquet_table(*scores)}
            JOIN (SELECT doc_id, domain, language, bytes FROM {parquet_table(*tokens)}
                  WHERE split = 'held_out') USING (doc_id)
            LEFT JOIN (SELECT doc_id, quadrant FROM {parquet_table(directory.assignment)}
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
