"""The scoring phase: token shards in, NLL of every document under both reference models out.

Reads RUN/tokens/part-*, writes RUN/scores/part-*.parquet with the same names: doc_id,
predicted_tokens, nll_weak, nll_strong (sums in nats). Documents of the splits train and held_out
are scored. One without tokens has nothing to predict: it is kept with zeros, and the partition
gives it no quadrant. Under `scoring.unit: byte` each model is scored by itself, on the tokens that
it reads, and in place of predicted_tokens stand bytes (UTF-8, of the text), predicted_tokens_weak
and predicted_tokens_strong.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from frame_jax.config.run import RunConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.errors import UserError
from frame_jax.models.functional import Decoder
from frame_jax.models.transformer import Params
from frame_jax.parallel import processes
from frame_jax.run import progress
from frame_jax.run.directory import (
    RunDirectory,
    atomic_path,
    list_parts,
    read_json,
    write_json,
)
from frame_jax.scoring.checks import long_context_warning
from frame_jax.scoring.documents import Scores, score_documents
from frame_jax.scoring.model_tokenizers import (
    REFERENCE_NAMES,
    DocumentTexts,
    ModelTokenizer,
    bos_messages,
    encode_texts,
    model_tokenizer,
    read_documents,
)
from frame_jax.scoring.references import load_references, model_digest
from frame_jax.scoring.running_totals import RunningTotals, sample_warnings, weak_is_better_warning
from frame_jax.scoring.scorer import Scorer

SCORED_SPLITS = [("split", "in", ("train", "held_out"))]
SAMPLED_PARTS, SAMPLED_DOCUMENTS = 8, 64  # looked at before all else


def score_corpus(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    """Scores every part that has no scores yet; called on every process.

    Returns:
        documents, predicted_tokens, the mean NLL of each model over all parts, documents whose
        PD is negative, and what each model with its own tokenizer starts documents with and what
        makes the scores mean little (`warnings`).

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
        readings = [model_tokenizer(config, directory, name) for name in REFERENCE_NAMES]
        found = {
            name: model_digest(*model) + reading.digest
            for name, model, reading in zip(REFERENCE_NAMES, references, readings, strict=True)
        }
        require_different(found)
        if processes.is_first() and len(missing) == len(parts):
            write_json(models_path(directory), found)
        processes.barrier("score: models known")
        require_same_models(models_path(directory), found)
        passes = make_passes(config.scoring, references, readings)
        score_parts(config, directory, passes, processes.local_share(missing))
    processes.barrier("score: parts written")
    if processes.is_first():
        found = scores_summary(directory, parts, config.scoring.unit)
        warnings = list(score_warnings(config, found, parts))
        messages = [*bos_messages(config), *warnings]  # the first when the run began
        write_json(summary_path(directory), {**found, "warnings": messages})
        for line in warnings:
            print(f"warning: {line}", file=sys.stderr, flush=True)
    processes.barrier("score: summed up")
    return read_json(summary_path(directory))


def score_warnings(config: RunConfig, found: dict[str, Any], parts: list[Path]) -> Iterator[str]:
    """What makes scores mean little, in words.

    Args:
        config: The run's settings.
        found: As `scores_summary` gives it.
        parts: The token shards' tables.
    """
    if found["mean_nll_weak"] < found["mean_nll_strong"]:
        yield weak_is_better_warning(
            f"{found['negative_pd']:,} of {found['documents']:,} documents have a negative PD"
        )
    context, rows = config.scoring.context, config.reference.rows.sequence_length
    trained = [
        name for name in REFERENCE_NAMES if getattr(config.reference, name).checkpoint is None
    ]
    if trained and context > rows:
        longer = sum(pc.sum(pc.greater(read_tokens(part), rows)).as_py() or 0 for part in parts)
        if longer:
            yield (
                f"{longer:,} of {found['documents']:,} documents are longer. "
                f"{long_context_warning(context, rows, trained)}"
            )


def scores_path(directory: RunDirectory, tokens_part: Path) -> Path:
    return directory.scores / tokens_part.name


def models_path(directory: RunDirectory) -> Path:
    """Digests of the models that all parts are scored with, by name."""
    return directory.scores / "models.json"


def summary_path(directory: RunDirectory) -> Path:
    """What `score_corpus` returns, so that one process alone reads all scores."""
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
    for name in REFERENCE_NAMES:
        if begun[name] != found[name]:
            raise UserError(
                f"reference.{name}: its weights or its tokenizer are not those that the parts in "
                f"{path.parent} were scored with. Put those back, or score everything again: "
                "--redo score"
            )


class ScoringPass(NamedTuple):
    """Models that read the same tokens and are scored in one call."""

    names: tuple[str, ...]
    scorer: Scorer
    tokenizer: ModelTokenizer

    @property
    def vocab_sizes(self) -> list[int]:
        return [decoder.vocab_size for decoder in self.scorer.models]


def make_passes(
    scoring: ScoringConfig,
    references: Sequence[tuple[Decoder, Params]],
    readings: Sequence[ModelTokenizer],
) -> list[ScoringPass]:
    """Both models in one pass, or, where losses are compared by the byte, each in its own."""

    def over(first: int, stop: int) -> ScoringPass:
        scorer = Scorer(
            references[first:stop],
            scoring.context,
            per_device_batch_size=scoring.per_device_batch_size,
            loss_chunk=scoring.loss_chunk,
            fsdp=scoring.fsdp,
        )
        return ScoringPass(REFERENCE_NAMES[first:stop], scorer, readings[first])

    return [over(0, 2)] if scoring.unit == "token" else [over(0, 1), over(1, 2)]


def score_parts(
    config: RunConfig, directory: RunDirectory, passes: Sequence[ScoringPass], parts: list[Path]
) -> None:
    """Scores `parts` (token shards' parquet files), one after the other."""
    show = processes.is_first()
    by_text = any(each.tokenizer.tokenizer is not None for each in passes)
    texts = DocumentTexts(config, directory) if by_text else None
    for each in passes:
        sample = score_documents(
            each.scorer,
            sampled_documents(parts, config.scoring.context, each, texts),
            bos_id=each.tokenizer.bos_id,
        )
        for line in sample_warnings(sample, each.vocab_sizes, each.names):
            if show:
                print(f"warning: {line}", file=sys.stderr, flush=True)
    one_pass = len(passes) == 1
    count = scored_tokens if one_pass else scored_documents
    total = len(passes) * sum(count(part) for part in parts)
    unit = "tokens" if one_pass else "documents"
    with progress.progress_bar("score", total, unit, show=show) as update:
        totals = [RunningTotals(update, each.vocab_sizes, each.names) for each in passes]
        for part in parts:
            index = read_index(part)
            scores = [
                score_documents(
                    each.scorer,
                    read_model_documents(part, index["row"].to_numpy(), each, texts),
                    bos_id=each.tokenizer.bos_id,
                    overlap=config.scoring.overlap,
                    report=running.add_batch,
                )
                for each, running in zip(passes, totals, strict=True)
            ]
            for running in totals:
                running.require_better_than_chance()
            write_scores(scores_path(directory, part), index, scores)


def read_model_documents(
    part: Path, rows: np.ndarray, models: ScoringPass, texts: DocumentTexts | None
) -> Iterator[np.ndarray]:
    """The ids that the models of a pass read in a part's scored documents, which are at `rows`."""
    own = models.tokenizer.tokenizer
    if own is None or texts is None:
        return checked_documents(part, rows, models.vocab_sizes, models.names)
    return encode_texts(texts.read_part(part, rows), own)


def read_index(part: Path) -> pa.Table:
    """The documents of a token shard that are scored: doc_id, row, bytes."""
    return pq.read_table(part, columns=["doc_id", "row", "bytes"], filters=SCORED_SPLITS)


def read_tokens(part: Path) -> pa.ChunkedArray:
    """How many tokens each of those documents has."""
    return pq.read_table(part, columns=["tokens"], filters=SCORED_SPLITS)["tokens"]


def scored_tokens(part: Path) -> int:
    """Tokens of those documents."""
    return pc.sum(read_tokens(part)).as_py() or 0


def scored_documents(part: Path) -> int:
    """How many they are."""
    return len(read_tokens(part))


def checked_documents(
    part: Path, rows: np.ndarray, vocab_sizes: Sequence[int], names: Sequence[str]
) -> Iterator[np.ndarray]:
    """The documents at `rows` of a token shard.

    Raises:
        UserError: for an id that a model has no row for, which it would take for another.
    """
    smallest = min(vocab_sizes)
    for document in read_documents(part.with_suffix(".arrayrecord"), rows):
        if len(document) and document.max() >= smallest:
            raise UserError(
                f"reference.{names[int(np.argmin(vocab_sizes))]}: a document of {part.name} holds "
                f"token {document.max()}, but the model knows {smallest} tokens: both reference "
                "models must share the run's tokenizer"
            )
        yield document


def sampled_documents(
    parts: list[Path], context: int, models: ScoringPass, texts: DocumentTexts | None
) -> Iterator[np.ndarray]:
    """First tokens, as many as a window holds, of documents from all over `parts`.

    Texts are those of the run's tokens, which is near enough to judge a model by.
    """
    chosen = spread_evenly(parts, SAMPLED_PARTS)
    for part in chosen:
        rows = spread_evenly(read_index(part)["row"].to_numpy(), SAMPLED_DOCUMENTS // len(chosen))
        own = models.tokenizer.tokenizer
        if own is None or texts is None:
            documents = checked_documents(part, rows, models.vocab_sizes, models.names)
        else:
            documents = encode_texts(texts.decode_part(part, rows), own)
        for document in documents:
            yield document[:context]


def spread_evenly(items: Any, most: int) -> Any:
    """At most `most` items of a sequence, evenly spaced."""
    return items[:: max(1, -(-len(items) // most))]


def write_scores(path: Path, index: pa.Table, scores: Sequence[Scores]) -> None:
    """Writes one part of RUN/scores, from what each pass has found of its documents."""
    nll = np.concatenate([each.nll for each in scores])
    bad = np.flatnonzero(~np.isfinite(nll).all(axis=0))
    if len(bad):
        raise UserError(
            f"{path.name}: the NLL of document {index['doc_id'][int(bad[0])].as_py()!r} and "
            f"{len(bad) - 1} others is not a number; check the reference models' weights, or score "
            "with scoring.compute_dtype: float32"
        )
    columns = {"doc_id": index["doc_id"]}
    if len(scores) == 1:
        columns["predicted_tokens"] = scores[0].predicted_tokens
    else:
        columns["bytes"] = index["bytes"]
        for name, each in zip(REFERENCE_NAMES, scores, strict=True):
            columns[f"predicted_tokens_{name}"] = each.predicted_tokens
    columns |= {f"nll_{name}": sums for name, sums in zip(REFERENCE_NAMES, nll, strict=True)}
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")


def scores_summary(directory: RunDirectory, parts: list[Path], unit: str) -> dict[str, Any]:
    """Totals over all scores; means are over tokens, or over bytes where that is the unit.

    Raises:
        UserError: if the scores of a part are missing.
    """
    counted = "predicted_tokens" if unit == "token" else "bytes"
    totals = {"documents": 0, counted: 0, "nll_weak": 0.0, "nll_strong": 0.0}
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
    return {
        "documents": totals["documents"],
        counted: totals[counted],
        "mean_nll_weak": totals["nll_weak"] / max(totals[counted], 1),
        "mean_nll_strong": totals["nll_strong"] / max(totals[counted], 1),
        "negative_pd": negative,
    }
