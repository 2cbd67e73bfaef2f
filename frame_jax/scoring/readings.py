"""How a model reads a run's documents: as the tokens that are stored, or by a tokenizer of its own.

The second is for `scoring.unit: byte`. [ours] The text is had from the stored tokens where the run
has trained its tokenizer, which loses nothing; one that was given may compose characters, so then
the text is read from the corpus again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from frame_jax.config.corpus import TokenizerConfig
from frame_jax.config.run import RunConfig
from frame_jax.corpus.documents import Document
from frame_jax.corpus.parts import plan
from frame_jax.corpus.tokenizer import Tokenizer, make_tokenizer
from frame_jax.corpus.vocabulary import adopt
from frame_jax.errors import UserError
from frame_jax.files import cached, is_checkpoint
from frame_jax.run.directory import RunDirectory, list_parts, read_json
from frame_jax.run.special_tokens import BOS_NAMES, EOS_NAMES, special_tokens_path
from frame_jax.scoring.tokenizers import (
    differences,
    read_tokenizer,
    special_tokens,
    token_ids,
    tokenizer_of,
)

TEXTS_BYTES = 2_000_000  # encoded at one time


class Reading(NamedTuple):
    """How one model reads.

    Attributes:
        bos_id: What it starts a document with.
        tokenizer: Its own; None where it reads the run's tokens.
        digest: Of its own tokenizer; empty for the run's.
    """

    bos_id: int
    tokenizer: Tokenizer | None = None
    digest: str = ""


def reading_of(config: RunConfig, directory: RunDirectory, name: str) -> Reading:
    """How the weak or the strong model reads.

    Raises:
        UserError: as `own_tokenizer`.
    """
    bos_id: int = read_json(special_tokens_path(directory))["bos_id"]
    checkpoint = getattr(config.reference, name).checkpoint
    if config.scoring.unit == "token" or checkpoint is None:
        return Reading(bos_id)
    folder, key = cached(checkpoint, is_checkpoint), f"reference.{name}.checkpoint"
    path = tokenizer_of(folder, key)
    if not any(differences(read_tokenizer(path), read_tokenizer(directory.tokenizer), bos_id)):
        return Reading(bos_id)
    own = own_tokenizer(folder, key, config.tokenizer.bos_token)
    return Reading(own.bos_id, own, hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest())


def own_tokenizer(
    folder: Path, key: str, bos_token: str | None, vocab_size: int | None = None
) -> Tokenizer:
    """The tokenizer of a checkpoint, which starts documents as the run's does, if it has that
    token, or with the first usual name that it has.

    Args:
        folder: A Hugging Face checkpoint.
        key: The setting that names it, for messages.
        bos_token: What `tokenizer.bos_token` says.
        vocab_size: Rows of the model's embedding, to be compared.

    Raises:
        UserError: where it has none, none of the usual tokens that start or end a text, or a token
            of text that the model has no row for.
    """
    path = tokenizer_of(folder, key)
    parsed = read_tokenizer(path)
    ids, names = token_ids(parsed), (*BOS_NAMES, *EOS_NAMES)
    asked = bos_token if bos_token in ids else None
    if asked is None and not any(name in ids for name in names):
        raise UserError(
            f"{key}: {path} has none of the usual tokens that start or end a text "
            f"({', '.join(names)}): add the one that the model was trained with"
        )
    backend, chosen = adopt(TokenizerConfig(path=str(path), bos_token=asked))
    beyond = max(i for token, i in ids.items() if token not in special_tokens(parsed))
    beyond = max(beyond, ids[chosen.bos])
    if vocab_size is not None and beyond >= vocab_size:
        raise UserError(
            f"{key}: the model knows {vocab_size:,} tokens, but {path} has a token {beyond:,} that "
            "text may hold: put the tokenizer.json there that the model was trained with. A token "
            "that is no text, such as one for padding, needs `special: true`"
        )
    return make_tokenizer(backend, ids[chosen.bos], ids[chosen.eos])


def encoded(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The ids of each text, in order; a few texts are held at one time."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= TEXTS_BYTES:
            yield from tokenizer.encode_arrays(batch)
            batch, size = [], 0
    yield from tokenizer.encode_arrays(batch)


def texts_again(config: RunConfig, directory: RunDirectory, part: Path) -> Iterator[str]:
    """The texts of a part's scored documents, in its order, read from the corpus.

    Args:
        config: The run.
        directory: The run.
        part: The table of a token shard.

    Raises:
        UserError: where the corpus is not there, or is not what was tokenized.
    """
    columns = ["doc_id", "file", "line", "bytes", "split"]
    wanted = (
        row
        for batch in pq.ParquetFile(part).iter_batches(columns=columns)
        for row in batch.to_pylist()
        if row["split"] in ("train", "held_out")
    )
    row = next(wanted, None)
    for chunk in plan(config.corpus)[list_parts(directory.tokens, ".parquet").index(part)]:
        if row is None:
            return
        for record in chunk.read():
            if row is None:
                return
            if not isinstance(record, Document):
                continue
            if (record.id, record.file, record.line) != (row["doc_id"], row["file"], row["line"]):
                continue
            if len(record.text.encode()) != row["bytes"]:
                break
            yield record.text
            row = next(wanted, None)
    if row is not None:
        raise UserError(
            f"{row['file']} line {row['line']}: document {row['doc_id']!r} is not what it was when "
            "it was tokenized, and scoring.unit: byte reads the corpus again where tokenizer.path "
            "is given: put it back, or leave tokenizer.path out in a new run directory"
        )
