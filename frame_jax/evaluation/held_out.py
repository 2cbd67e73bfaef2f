"""Evaluates a trial: the losses of its kept checkpoints on the held-out split.

Reads RUN/pretrain/<trial>/, RUN/tokens and RUN/quadrants/assignment.parquet. Writes
RUN/evaluation/<trial>/<weights>/part-*.parquet (one row a held-out document: doc_id,
predicted_tokens, nll, a sum in nats; weights are a step, or `average-...`) and from them
RUN/evaluation/<trial>.json. Every trial is scored on the same documents, from their own starts, as
in `frame_jax.scoring`. The same file holds the scores of multiple-choice tasks (`evaluation.tasks`)
and losses on training rows (`evaluation.training_rows`) where the config asks for them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from frame_jax import checkpoints
from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError
from frame_jax.evaluation import results, tasks, training_rows
from frame_jax.evaluation.weights import Part, Weights, write_missing_parts
from frame_jax.parallel import processes
from frame_jax.records import read_documents
from frame_jax.run.directory import RunDirectory, list_parts
from frame_jax.run.special_tokens import read_special_tokens
from frame_jax.run.trial_record import TrialRecord, load_trial_record
from frame_jax.scoring.documents import score_documents
from frame_jax.scoring.scorer import Scorer
from frame_jax.sql import parquet_table, query


def evaluate_trial(config: RunConfig, directory: RunDirectory, trial: str) -> dict[str, Any]:
    """Evaluates every kept checkpoint of a trial, and its averages; called on every process.

    Returns:
        The final checkpoint's step, held-out NLL per token and bits per byte.

    Raises:
        UserError: if there is no held-out document, a checkpoint is missing, or a loss is not
            finite.
    """
    documents = held_out_documents(directory, config.evaluation.max_documents)
    record = load_trial_record(directory.pretrain(trial))
    means = [Weights.mean(record, average) for average in config.evaluation.averages]
    kept = [Weights.of_step(step) for step in sorted(record.kept_steps)]
    needed = [step for each in (*kept, *means) for step in each.steps]
    checkpoints.require_saved(directory.pretrain(trial) / "checkpoints", needed)
    score_held_out(config, directory, trial, [*kept, *means], documents)
    scores = tasks.score_tasks(config, directory, trial, record, means)
    rows = training_rows.measure_training_rows(config, directory, trial)
    if processes.is_first():
        checkpoints_, averages = (
            tuple(held_out_result(directory, trial, record, weights) for weights in group)
            for group in (kept, means)
        )
        result = results.TrialResult(trial, checkpoints_, averages, tuple(scores), rows)
        results.write_result(directory, result)
    processes.barrier(f"evaluate {trial}: result written")
    final = results.read_result(directory, trial).final
    return {
        "step": final.step,
        "nll_per_token": final.overall.nll_per_token,
        "bits_per_byte": final.overall.bits_per_byte,
    }


def held_out_documents(directory: RunDirectory, max_documents: int | None) -> dict[str, pa.Table]:
    """Lists the documents to score: doc_id, row, tokens, by the stem of the token file they are in.

    Only the first `max_documents` by a hash of their ids; None takes all.

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


def score_held_out(
    config: RunConfig,
    directory: RunDirectory,
    trial: str,
    weights: Sequence[Weights],
    documents: dict[str, pa.Table],
) -> None:
    """Writes the losses of `held_out_documents` under all weights; called on every process.

    Raises:
        UserError: if a loss is not finite.
    """
    bos_id = read_special_tokens(directory).bos_id
    parts = [
        Part(
            each,
            results.scores_folder(directory, trial, each.name) / f"{name}.parquet",
            work=name,
            size=pc.sum(table["tokens"]).as_py(),
            note=f"weights {each.name}",
        )
        for each in weights
        for name, table in documents.items()
    ]

    def measure(scorer: Scorer, part: Part, report: Callable[[int], None]) -> dict[str, Any]:
        table = documents[part.work]
        file = directory.tokens / f"{part.work}.arrayrecord"
        scores = score_documents(
            scorer,
            read_documents(file, table["row"].to_numpy()),
            bos_id=bos_id,
            overlap=config.scoring.overlap,
            report=lambda batch: report(batch.tokens),
        )
        columns = {"doc_id": table["doc_id"], "predicted_tokens": scores.predicted_tokens}
        return {**columns, "nll": scores.nll[0]}

    title = f"evaluate {trial}"
    write_missing_parts(config, directory, trial, parts, measure, title=title, unit="tokens")


def held_out_result(
    directory: RunDirectory, trial: str, record: TrialRecord, weights: Weights
) -> results.WeightsResult:
    """Sums the losses of held-out documents under some weights, by slice."""
    scores, tokens = (
        parquet_table(*list_parts(folder, ".parquet"))
        for folder in (results.scores_folder(directory, trial, weights.name), directory.tokens)
    )
    rows = query(
        lambda *row: row,
        f"""
        SELECT {results.SLICE_SQL}, count(*), CAST(sum(predicted_tokens) AS BIGINT),
               CAST(sum(bytes) AS BIGINT), sum(nll)
        FROM {scores}
        JOIN (SELECT doc_id, domain, language, bytes FROM {tokens}
              WHERE split = 'held_out') USING (doc_id)
        LEFT JOIN (SELECT doc_id, quadrant FROM {parquet_table(directory.assignment)}
                   WHERE split = 'held_out') USING (doc_id)
        GROUP BY GROUPING SETS ((), (domain), (language), (quadrant))
        ORDER BY slice
        """,
    )
    slices = {
        label: results.HeldOutLoss(
            count, predicted_tokens, size, nll, nll / predicted_tokens, nll / (size * math.log(2))
        )
        for label, count, predicted_tokens, size, nll in rows
        if label is not None
    }
    tokens_seen = weights.step * record.tokens_per_step
    return results.WeightsResult(weights.name, weights.steps, weights.step, tokens_seen, slices)
