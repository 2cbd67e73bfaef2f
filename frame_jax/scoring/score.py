"""The scoring phase: token shards in, NLL of every document under both reference models out.

Reads RUN/tokens/part-*, writes RUN/scores/part-*.parquet with the same names: doc_id,
predicted_tokens, nll_weak, nll_strong (sums in nats). Documents of the splits train and held_out
are scored. One without tokens has nothing to predict: it is kept with zeros, and the partition
gives it no quadrant.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError
from frame_jax.models.functional import Decoder
from frame_jax.models.transformer import Params
from frame_jax.parallel import processes
from frame_jax.records import TokenReader
from frame_jax.run import progress
from frame_jax.run.directory import (
    RunDirectory,
    atomic_path,
    list_parts,
    read_json,
    write_json,
)
from frame_jax.scoring.checks import too_long
from frame_jax.scoring.documents import Scores, score_documents
from frame_jax.scoring.meter import Meter, judge, weak_is_better
from frame_jax.scoring.references import NAMES, digest, load_references, special_tokens
from frame_jax.scoring.step import Scorer

SCORED = [("split", "in", ("train", "held_out"))]
READ_DOCUMENTS = 1024  # documents read from a token shard at one time
SAMPLED_PARTS, SAMPLED_DOCUMENTS = 8, 64  # looked at before all else


def run(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    """Scores every part that has no scores yet; called on every process.

    Returns:
        documents, predicted_tokens, the mean NLL of each model over all parts, documents whose
        PD is negative, and what makes the scores mean little (`warnings`).

    Raises:
        UserError: for a missing or unfit reference model, one worse than the uniform
            distribution, one that is the other, or one that is not what the other parts were
            scored with.
    """
    parts = list_parts(directory.tokens, ".parquet")
    missing = [part for part in parts if not scores_path(directory, part).exists()]
    # Every process sees the same missing parts, because none writes before all have looked.
    processes.barrier("score: parts listed")
    if missing:
        references = load_references(config, directory)
        found = {name: digest(*model) for name, model in zip(NAMES, references, strict=True)}
        require_different(found)
        if processes.is_first() and len(missing) == len(parts):
            write_json(models_path(directory), found)
        processes.barrier("score: models known")
        require_same_models(models_path(directory), found)
        score_parts(config, directory, references, processes.mine(missing))
    processes.barrier("score: parts written")
    if processes.is_first():
        found = summary(directory, parts)
        warnings = list(oddities(config, found, parts))
        write_json(summary_path(directory), {**found, "warnings": warnings})
        for line in warnings:
            print(f"warning: {line}", file=sys.stderr, flush=True)
    processes.barrier("score: summed up")
    return read_json(summary_path(directory))


def oddities(config: RunConfig, found: dict[str, Any], parts: list[Path]) -> Iterator[str]:
    """What makes scores mean little, in words.

    Args:
        config: The run's settings.
        found: As `summary` gives it.
        parts: The token shards' tables.
    """
    if found["mean_nll_weak"] < found["mean_nll_strong"]:
        yield weak_is_better(
            f"{found['negative_pd']:,} of {found['documents']:,} documents have a negative PD"
        )
    context, rows = config.scoring.context, config.reference.rows.sequence_length
    trained = [name for name in NAMES if getattr(config.reference, name).checkpoint is None]
    if trained and context > rows:
        longer = sum(pc.sum(pc.greater(read_tokens(part), rows)).as_py() or 0 for part in parts)
        if longer:
            yield (
                f"{longer:,} of {found['documents']:,} documents are longer. "
                f"{too_long(context, rows, trained)}"
            )


def scores_path(directory: RunDirectory, tokens_part: Path) -> Path:
    return directory.scores / tokens_part.name


def models_path(directory: RunDirectory) -> Path:
    """Digests of the models that all parts are scored with, by name."""
    return directory.scores / "models.json"


def summary_path(directory: RunDirectory) -> Path:
    """What `run` returns, so that one process alone reads all scores."""
    return directory.scores / "summary.json"


def require_different(found: dict[str, str]) -> None:
    """Refuses one model in both places.

    Raises:
        UserError: where the digests are equal.
    """
    if len(set(found.values())) == 1:
        raise UserError(
            "reference.weak and reference.strong hold the same weights, so the perplexity "
            "difference of every document would be 0: the weak model must be a smaller or a less "
            "trained one"
        )


def require_same_models(path: Path, found: dict[str, str]) -> None:
    """Refuses to complete scores with other models than those that began them.

    Settings name an imported checkpoint by its path, where other weights may lie by now.

    Raises:
        UserError: naming the model that differs.
    """
    begun = read_json(path) if path.exists() else found
    for name in NAMES:
        if begun[name] != found[name]:
            raise UserError(
                f"reference.{name}: its weights are not those that the parts in {path.parent} were "
                "scored with. Put those back, or score everything again: --redo score"
            )


def score_parts(
    config: RunConfig,
    directory: RunDirectory,
    references: Sequence[tuple[Decoder, Params]],
    parts: list[Path],
) -> None:
    """Scores `parts` (token shards' parquet files), one after the other."""
    scoring = config.scoring
    scorer = Scorer(
        references,
        scoring.context,
        rows_per_device=scoring.rows_per_device,
        loss_chunk=scoring.loss_chunk,
        fsdp=scoring.fsdp,
    )
    bos_id = special_tokens(directory)["bos_id"]
    vocab_sizes = [decoder.vocab_size for decoder in scorer.models]
    sample = score_documents(scorer, sampled(parts, scoring.context, vocab_sizes), bos_id=bos_id)
    for line in judge(sample, vocab_sizes):
        if processes.is_first():
            print(f"warning: {line}", file=sys.stderr, flush=True)
    total = sum(scored_tokens(part) for part in parts)
    with progress.bar("score", total, "tokens", show=processes.is_first()) as update:
        meter = Meter(update, vocab_sizes)
        for part in parts:
            index = read_index(part)
            scores = score_documents(
                scorer,
                known(part, index["row"].to_numpy(), vocab_sizes),
                bos_id=bos_id,
                overlap=scoring.overlap,
                report=meter.add,
            )
            meter.check()
            write_scores(scores_path(directory, part), index["doc_id"], scores)


def read_index(part: Path) -> pa.Table:
    """The documents of a token shard that are scored: doc_id, row."""
    return pq.read_table(part, columns=["doc_id", "row"], filters=SCORED)


def read_tokens(part: Path) -> pa.ChunkedArray:
    """How many tokens each of those documents has."""
    return pq.read_table(part, columns=["tokens"], filters=SCORED)["tokens"]


def scored_tokens(part: Path) -> int:
    """Tokens of those documents."""
    return pc.sum(read_tokens(part)).as_py() or 0


def read_documents(path: Path, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The token ids of the documents at `rows`, in that order."""
    reader = TokenReader(path)
    try:
        for start in range(0, len(rows), READ_DOCUMENTS):
            yield from reader.read(rows[start : start + READ_DOCUMENTS])
    finally:
        reader.close()


def known(part: Path, rows: np.ndarray, vocab_sizes: Sequence[int]) -> Iterator[np.ndarray]:
    """The documents at `rows` of a token shard.

    Raises:
        UserError: for an id that a model has no row for, which it would take for another.
    """
    smallest = min(vocab_sizes)
    for document in read_documents(part.with_suffix(".arrayrecord"), rows):
        if len(document) and document.max() >= smallest:
            raise UserError(
                f"reference.{NAMES[int(np.argmin(vocab_sizes))]}: a document of {part.name} holds "
                f"token {document.max()}, but the model knows {smallest} tokens: both reference "
                "models must share the run's tokenizer"
            )
        yield document


def sampled(parts: list[Path], context: int, vocab_sizes: Sequence[int]) -> Iterator[np.ndarray]:
    """First tokens, as many as a window holds, of documents from all over `parts`."""
    chosen = evenly(parts, SAMPLED_PARTS)
    for part in chosen:
        rows = evenly(read_index(part)["row"].to_numpy(), SAMPLED_DOCUMENTS // len(chosen))
        for document in known(part, rows, vocab_sizes):
            yield document[:context]


def evenly(items: Any, most: int) -> Any:
    """At most `most` items of a sequence, evenly spaced."""
    return items[:: max(1, -(-len(items) // most))]


def write_scores(path: Path, doc_id: pa.ChunkedArray, scores: Scores) -> None:
    """Writes one part of RUN/scores."""
    bad = np.flatnonzero(~np.isfinite(scores.nll).all(axis=0))
    if len(bad):
        raise UserError(
            f"{path.name}: the NLL of document {doc_id[int(bad[0])].as_py()!r} and {len(bad) - 1} "
            "others is not a number; check the reference models' weights, or score with "
            "scoring.compute_dtype: float32"
        )
    columns = {"doc_id": doc_id, "predicted_tokens": scores.predicted_tokens}
    columns |= {f"nll_{name}": nll for name, nll in zip(NAMES, scores.nll, strict=True)}
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


def summary(directory: RunDirectory, parts: list[Path]) -> dict[str, Any]:
    """Totals over all scores.

    Raises:
        UserError: if the scores of a part are missing.
    """
    totals = {"documents": 0, "predicted_tokens": 0, "nll_weak": 0.0, "nll_strong": 0.0}
    negative = 0
    for part in parts:
        path = scores_path(directory, part)
        if not path.exists():
            raise UserError(f"{path} is missing: another process stopped before it was written")
        table = pq.read_table(path, columns=list(totals)[1:])
        totals["documents"] += table.num_rows
        negative += pc.sum(pc.less(table["nll_weak"], table["nll_strong"])).as_py() or 0
        for name in table.column_names:
            totals[name] += pc.sum(table[name]).as_py() or 0
    predicted = max(totals["predicted_tokens"], 1)
    return {
        "documents": totals["documents"],
        "predicted_tokens": totals["predicted_tokens"],
        "mean_nll_weak": totals["nll_weak"] / predicted,
        "mean_nll_strong": totals["nll_strong"] / predicted,
        "negative_pd": negative,
    }
