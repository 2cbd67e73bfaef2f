"""Scores token shards: the documents of each part under the reference models, into one table.

A part of RUN/scores holds doc_id, predicted_tokens, nll_weak, nll_strong (sums in nats). Documents
of the splits train and held_out are scored. One without tokens has nothing to predict: it is kept
with zeros, and the partition gives it no quadrant. Under `scoring.unit: byte` each model is scored
by itself, on the tokens that it reads, and in place of predicted_tokens stand bytes (UTF-8, of the
text), predicted_tokens_weak and predicted_tokens_strong.
"""

from collections.abc import Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError, print_warning
from frame_jax.parallel import processes
from frame_jax.records import read_documents
from frame_jax.run import progress
from frame_jax.run.directory import RunDirectory, atomic_path, remove
from frame_jax.run.phases import REFERENCES
from frame_jax.scoring.documents import Scores, score_documents
from frame_jax.scoring.model_tokenizers import (
    ModelTokenizer,
    model_tokens_path,
    read_index,
    spread_evenly,
    write_model_tokens,
)
from frame_jax.scoring.running_totals import RunningTotals, sample_warnings
from frame_jax.scoring.scorer import Scorer

SAMPLED_PARTS, SAMPLED_DOCUMENTS = 8, 64  # looked at before all else


class ScoringPass(NamedTuple):
    """Models that read the same token ids and are scored in one call."""

    names: tuple[str, ...]
    scorer: Scorer
    tokenizer: ModelTokenizer

    @property
    def vocab_sizes(self) -> dict[str, int]:
        """Rows of the models' embeddings, by name."""
        return {
            n: model.vocab_size for n, model in zip(self.names, self.scorer.models, strict=True)
        }


def score_parts(
    config: RunConfig,
    directory: RunDirectory,
    passes: Sequence[ScoringPass],
    parts: list[Path],
    folder: Path,
    *,
    most: int | None = None,
    check: bool = True,
) -> None:
    """Scores parts (paths of token tables) into the same names in `folder`: each process its share,
    one after the other, once all have encoded them for models with tokenizers of their own.

    `most` scores so many documents of each, evenly spaced, in place of all.

    Raises:
        UserError: for a model worse than the uniform distribution, where `check` asks for that, or
            one that does not know a token; and as `reread_texts`.
    """
    show, whole = processes.is_first(), most is None
    own = [each.names[0] for each in passes if each.tokenizer.tokenizer is not None]
    for name in own:
        write_model_tokens(config, directory, name, parts, most)
    share = processes.local_share(parts)
    if whole and len(passes) == 1:  # losses on the same tokens, which can be compared
        [both] = passes
        windows = sampled_documents(share, config.scoring.context, both.vocab_sizes)
        sample = score_documents(both.scorer, windows, bos_id=both.tokenizer.bos_id)
        for line in sample_warnings(sample) if show else ():
            print_warning(line)
    lengths = (read_index(part, "tokens", most=most)["tokens"] for part in share)
    if len(passes) == 1:
        total, unit = sum(pc.sum(each).as_py() or 0 for each in lengths), "tokens"
    else:
        total, unit = len(passes) * sum(map(len, lengths)), "documents"
    title = "score" if whole else f"score, {folder.name}"
    with progress.progress_bar(title, total, unit, show=show) as update:
        totals = [RunningTotals(update, each.vocab_sizes, check) for each in passes]
        for part in share:
            index = read_index(part, "doc_id", "row", "bytes", most=most)
            scores = [
                score_documents(
                    each.scorer,
                    read_documents(
                        model_tokens_path(directory, each.names[0], part), range(len(index))
                    )
                    if each.names[0] in own
                    else checked_documents(part, index["row"].to_numpy(), each.vocab_sizes),
                    bos_id=each.tokenizer.bos_id,
                    overlap=config.scoring.overlap,
                    report=running.add_batch,
                )
                for each, running in zip(passes, totals, strict=True)
            ]
            for running in totals:
                running.require_better_than_chance()
            write_scores(folder / part.name, index, scores)
    processes.barrier(f"{title}: parts written")
    for name in own if show else ():
        remove(model_tokens_path(directory, name, parts[0]).parent)


def checked_documents(
    part: Path, rows: np.ndarray, vocab_sizes: dict[str, int]
) -> Iterator[np.ndarray]:
    """Yields the documents at `rows` of a token part, their ids checked against the vocabularies.

    Raises:
        UserError: for an id that a model has no row for, which it would take for another.
    """
    name, smallest = min(vocab_sizes.items(), key=itemgetter(1))
    for document in read_documents(part.with_suffix(".arrayrecord"), rows):
        if len(document) and document.max() >= smallest:
            raise UserError(
                f"reference.{name}: a document of {part.name} holds "
                f"token {document.max()}, but the model knows {smallest} tokens: both reference "
                "models must share the run's tokenizer"
            )
        yield document


def sampled_documents(
    parts: list[Path], context: int, vocab_sizes: dict[str, int]
) -> Iterator[np.ndarray]:
    """Yields documents from all over `parts`, cut to one window, to judge the models by."""
    chosen = spread_evenly(parts, SAMPLED_PARTS)
    for part in chosen:
        index = read_index(part, "row", most=SAMPLED_DOCUMENTS // len(chosen))
        for document in checked_documents(part, index["row"].to_numpy(), vocab_sizes):
            yield document[:context]


def write_scores(path: Path, index: pa.Table, scores: Sequence[Scores]) -> None:
    """Writes one part of RUN/scores from the scores of each pass."""
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
        for name, each in zip(REFERENCES, scores, strict=True):
            columns[f"predicted_tokens_{name}"] = each.predicted_tokens
    columns |= {f"nll_{name}": sums for name, sums in zip(REFERENCES, nll, strict=True)}
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd")
