"""The scoring phase: token shards in, NLL of every document under both reference models out.

Reads RUN/tokens/part-*, writes RUN/scores/part-*.parquet with the same names: doc_id,
predicted_tokens, nll_weak, nll_strong (sums in nats). Documents of the splits train and held_out
are scored. One without tokens has nothing to predict: it is kept with zeros, and the partition
gives it no quadrant.
"""

from __future__ import annotations

import math
import time
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
from frame_jax.scoring.documents import BatchScores, Scores, score_documents
from frame_jax.scoring.references import NAMES, digest, load_references, special_tokens
from frame_jax.scoring.step import Scorer

SCORED = [("split", "in", ("train", "held_out"))]
READ_DOCUMENTS = 1024  # documents read from a token shard at one time
CHECK_TOKENS = 100_000  # tokens after which a model is compared with the uniform distribution


def run(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    """Scores every part that has no scores yet; called on every process.

    Returns:
        documents, predicted_tokens, and the mean NLL of each model over all parts.

    Raises:
        UserError: for a missing or unfit reference model, one worse than the uniform
            distribution, or one that is not what the other parts were scored with.
    """
    parts = list_parts(directory.tokens, ".parquet")
    missing = [part for part in parts if not scores_path(directory, part).exists()]
    # Every process sees the same missing parts, because none writes before all have looked.
    processes.barrier("score: parts listed")
    if missing:
        references = load_references(config, directory)
        found = {name: digest(*model) for name, model in zip(NAMES, references, strict=True)}
        if processes.is_first() and len(missing) == len(parts):
            write_json(models_path(directory), found)
        processes.barrier("score: models known")
        require_same_models(models_path(directory), found)
        score_parts(config, directory, references, processes.mine(missing))
    processes.barrier("score: parts written")
    return summary(directory, parts)


def scores_path(directory: RunDirectory, tokens_part: Path) -> Path:
    return directory.scores / tokens_part.name


def models_path(directory: RunDirectory) -> Path:
    """Digests of the models that all parts are scored with, by name."""
    return directory.scores / "models.json"


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
    total = sum(scored_tokens(part) for part in parts)
    with progress.bar("score", total, "tokens", show=processes.is_first()) as update:
        meter = Meter(update, [decoder.vocab_size for decoder in scorer.models])
        for part in parts:
            index = read_index(part)
            scores = score_documents(
                scorer,
                read_documents(part.with_suffix(".arrayrecord"), index["row"].to_numpy()),
                bos_id=bos_id,
                overlap=scoring.overlap,
                report=meter.add,
            )
            meter.check()
            write_scores(scores_path(directory, part), index["doc_id"], scores)


def read_index(part: Path) -> pa.Table:
    """The documents of a token shard that are scored: doc_id, row."""
    return pq.read_table(part, columns=["doc_id", "row"], filters=SCORED)


def scored_tokens(part: Path) -> int:
    """Tokens of those documents."""
    return pc.sum(pq.read_table(part, columns=["tokens"], filters=SCORED)["tokens"]).as_py() or 0


def read_documents(path: Path, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The token ids of the documents at `rows`, in that order."""
    reader = TokenReader(path)
    try:
        for start in range(0, len(rows), READ_DOCUMENTS):
            yield from reader.read(rows[start : start + READ_DOCUMENTS])
    finally:
        reader.close()


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


class Meter:
    """Running totals over the batches of this process: what the progress bar shows."""

    def __init__(self, update: progress.Update, vocab_sizes: list[int]):
        self._update, self._vocab_sizes = update, vocab_sizes
        self._documents, self._tokens = 0, 0
        self._nll = np.zeros(len(vocab_sizes))
        self._checked, self._started = False, time.monotonic()

    def add(self, batch: BatchScores) -> None:
        """Counts a batch."""
        self._documents += batch.documents
        self._tokens += batch.tokens
        self._nll += batch.nll
        weak, strong = self._nll / max(self._tokens, 1)
        rate = self._documents / max(time.monotonic() - self._started, 1e-9)
        with np.errstate(all="ignore"):  # a broken model's numbers are shown until it is refused
            ppl, pd = np.exp(strong), 1 - np.exp(strong - weak)
        self._update(
            batch.tokens,
            f"{self._documents:,} documents, {rate:,.1f} documents/s, PPL {ppl:,.1f}, PD {pd:+.3f}",
        )
        if self._tokens >= CHECK_TOKENS:
            self.check()

    def check(self) -> None:
        """Refuses, once and before anything is written, a model that has learned nothing.

        Raises:
            UserError: if the mean NLL exceeds that of the uniform distribution, or is NaN.
        """
        if self._checked or self._tokens == 0:
            return
        self._checked = True
        means = self._nll / self._tokens
        for name, mean, vocab_size in zip(NAMES, means, self._vocab_sizes, strict=True):
            if not mean <= math.log(vocab_size):
                raise UserError(
                    f"the {name} reference model predicts worse than chance: {mean:.3f} nats a "
                    f"token over {self._tokens:,} tokens, where a uniform guess among "
                    f"{vocab_size:,} tokens costs {math.log(vocab_size):.3f}. Train it longer "
                    f"(reference.{name}.training), or check that reference.{name}.checkpoint and "
                    "the tokenizer belong together"
                )


def summary(directory: RunDirectory, parts: list[Path]) -> dict[str, Any]:
    """Totals over all scores.

    Raises:
        UserError: if the scores of a part are missing.
    """
    totals = {"documents": 0, "predicted_tokens": 0, "nll_weak": 0.0, "nll_strong": 0.0}
    for part in parts:
        path = scores_path(directory, part)
        if not path.exists():
            raise UserError(f"{path} is missing: another process stopped before it was written")
        table = pq.read_table(path, columns=list(totals)[1:])
        totals["documents"] += table.num_rows
        for name in table.column_names:
            totals[name] += pc.sum(table[name]).as_py() or 0
    predicted = max(totals["predicted_tokens"], 1)
    return {
        "documents": totals["documents"],
        "predicted_tokens": totals["predicted_tokens"],
        "mean_nll_weak": totals["nll_weak"] / predicted,
        "mean_nll_strong": totals["nll_strong"] / predicted,
    }
