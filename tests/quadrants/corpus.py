"""A small tokenized and scored corpus on disk, and what the phases should make of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.config.corpus import CorpusConfig, SourceConfig
from frame_jax.config.quadrants import PartitionConfig
from frame_jax.config.run import RunConfig
from frame_jax.records import write_tokens
from frame_jax.run.directory import RunDirectory, part_name, write_json

BOS, EOS = 1, 2


@dataclass
class Corpus:
    """Columns of equal length, one entry a document; `tokens` are lengths."""

    doc_id: np.ndarray
    split: np.ndarray
    source: np.ndarray
    domain: np.ndarray
    language: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    gap: np.ndarray
    scored: np.ndarray


def make_corpus(
    documents: int = 3000, seed: int = 0, *, levels: int | None = None, median_tokens: float = 40.0
) -> Corpus:
    """Documents of two domains in two languages.

    `levels`, a power of two, rounds the scores to that many values a nat: ties that survive the
    way to sums of NLL and back.
    """
    random = np.random.default_rng(seed)
    loss, gap = random.normal(4, 1, documents), random.gumbel(0.3, 0.4, documents)
    if levels is not None:
        loss, gap = np.rint(loss * levels) / levels, np.rint(gap * levels) / levels
    split = random.choice(["train", "held_out", "reference"], documents, p=[0.7, 0.15, 0.15])
    domain = random.choice(["prose", "code"], documents)
    return Corpus(
        doc_id=np.array([f"document-{i}" for i in random.permutation(documents)]),
        split=split,
        source=np.char.add(domain, random.choice(["-a", "-b"], documents)),
        domain=domain,
        language=random.choice(["en", "zh"], documents, p=[0.7, 0.3]),
        tokens=np.ceil(random.lognormal(np.log(median_tokens), 0.8, documents)).astype(np.int64),
        loss=loss,
        gap=gap,
        scored=split != "reference",
    )


def texts(corpus: Corpus) -> list[np.ndarray]:
    """Token ids of every document, without special ones, different for every document."""
    random = np.random.default_rng(9)
    return [random.integers(3, 60_000, length) for length in corpus.tokens]


def write(
    corpus: Corpus, root: Path, *, parts: int = 3, with_texts: bool = False, eos: int = EOS
) -> RunDirectory:
    """The files of the tokenize and score phases; scores in another order than the tokens."""
    directory = RunDirectory(root)
    directory.tokens.mkdir(parents=True)
    directory.scores.mkdir()
    contents = texts(corpus) if with_texts else []
    for part, chosen in enumerate(np.array_split(np.arange(len(corpus.doc_id)), parts)):
        table = {
            "doc_id": corpus.doc_id[chosen],
            "part": np.full(len(chosen), part, np.int32),
            "row": np.arange(len(chosen)),
            "split": corpus.split[chosen],
            "source": corpus.source[chosen],
            "domain": corpus.domain[chosen],
            "language": corpus.language[chosen],
            "tokens": corpus.tokens[chosen],
            "bytes": 4 * corpus.tokens[chosen],
        }
        name = part_name(part, parts, ".parquet")
        pq.write_table(pa.table(table), directory.tokens / name)
        shown = chosen[corpus.scored[chosen]][::-1]
        weight = corpus.tokens[shown]
        scores = {
            "doc_id": corpus.doc_id[shown],
            "predicted_tokens": weight,
            "nll_weak": (corpus.loss + corpus.gap)[shown] * weight,
            "nll_strong": corpus.loss[shown] * weight,
        }
        pq.write_table(pa.table(scores), directory.scores / name)
        if with_texts:
            with write_tokens(directory.tokens / part_name(part, parts, ".arrayrecord")) as writer:
                for document in chosen:
                    writer.append(contents[document])
    special = {"bos_id": BOS, "eos_id": eos, "vocab_size": 60_000}
    write_json(directory.tokenizer.with_name("special_tokens.json"), special)
    return directory


def run_config(directory: RunDirectory, seed: int = 0, **partition) -> RunConfig:
    return RunConfig(
        run_directory=str(directory.root),
        corpus=CorpusConfig([SourceConfig("python_library")]),
        seed=seed,
        partition=PartitionConfig(**partition),
    )


def stored(corpus: Corpus) -> Corpus:
    """The corpus with loss and gap as they come back from sums of NLL."""
    weak, strong = (corpus.loss + corpus.gap) * corpus.tokens, corpus.loss * corpus.tokens
    with np.errstate(invalid="ignore"):
        loss = strong / corpus.tokens
        return replace(corpus, loss=loss, gap=weak / corpus.tokens - loss)


def rank_bins(
    value: np.ndarray,
    doc_id: np.ndarray,
    weight: np.ndarray,
    basis: np.ndarray,
    targets: np.ndarray,
    count: int,
) -> list[int]:
    """Bins of the documents `targets`, where those of `basis`, end to end, are cut evenly."""
    begins: dict[int, tuple[float, str]] = {}
    total, done = int(weight[basis].sum()), 0
    for v, i, w in sorted(zip(value[basis], doc_id[basis], weight[basis].tolist(), strict=True)):
        for b in range(1, count * (2 * done + w) // (2 * total) + 1):
            begins.setdefault(b, (v, i))
        done += w
    return [
        sum((v, i) >= begin for begin in begins.values())
        for v, i in zip(value[targets], doc_id[targets], strict=True)
    ]


def expected_copies(corpus: Corpus, by: str, repeats: dict[str, float]) -> np.ndarray:
    """How often each training document is read where groups are repeated, int64 [documents]."""
    found = np.zeros(len(corpus.doc_id), np.int64)
    for document in np.flatnonzero(corpus.split == "train"):
        digest = hashlib.md5(f"mixture {corpus.doc_id[document]}".encode()).digest()
        number = (int.from_bytes(digest[8:], "little") >> 11) / 2**53
        often = repeats.get(str(getattr(corpus, by)[document]), 1)
        found[document] = sum(copy + number < often for copy in range(100))
    return found


def expected_cells(
    corpus: Corpus, config: PartitionConfig, copies: np.ndarray | None = None
) -> np.ndarray:
    """Quadrant of every document, None for those without a place, by the rule as it is written
    down."""
    corpus, axes = stored(corpus), config.axes
    copies = np.ones(len(corpus.doc_id), np.int64) if copies is None else copies
    read = corpus.tokens * copies
    scores = (corpus.doc_id, read)
    with np.errstate(over="ignore"):
        finite = np.isfinite([corpus.loss, corpus.gap, np.exp(corpus.loss), np.exp(-corpus.gap)])
    fit = corpus.scored & (corpus.tokens > 0) & finite.all(0)
    trains = fit & (corpus.split == "train") & (copies > 0)
    columns = [getattr(corpus, name) for name in config.group_by]
    keys = [tuple(column[i] for column in columns) for i in range(len(corpus.doc_id))]
    quadrants = np.full(len(keys), None, object)
    for key in set(keys):
        group = np.array([k == key for k in keys])
        small = read[group & trains].sum() < max(config.min_group_tokens, 1)
        for language in np.unique(corpus.language[group]):
            speaks = corpus.language == language
            basis, targets = trains & (speaks if small else group), group & fit & speaks
            if not basis.any():
                continue
            ppl_bin = np.zeros(len(keys), int)
            ppl_bin[basis] = rank_bins(corpus.loss, *scores, basis, basis, axes.ppl)
            ppl_bin[targets] = rank_bins(corpus.loss, *scores, basis, targets, axes.ppl)
            for b in range(axes.ppl):
                inside = basis & (ppl_bin == b) if config.mode == "nested" else basis
                here = targets & (ppl_bin == b)
                pd_bins = rank_bins(corpus.gap, *scores, inside, here, axes.pd)
                quadrants[here] = [axes.quadrant_name(b, d) for d in pd_bins]
    return quadrants
