"""How a reference model reads a document: as the stored token ids, or by its own tokenizer.

The second is for `scoring.unit: byte`, which is ours and not the paper's.
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.config.corpus import TokenizerConfig
from frame_jax.config.run import RunConfig
from frame_jax.corpus.tokenizer import Tokenizer, load_tokenizer, make_tokenizer
from frame_jax.corpus.tokenizer_training import load_given_tokenizer, other_bos_messages
from frame_jax.errors import UserError
from frame_jax.files import is_checkpoint, local_copy
from frame_jax.packing import batch_by_size
from frame_jax.records import read_documents, write_tokens
from frame_jax.run.directory import RunDirectory
from frame_jax.run.map_parts import Advance, map_parts
from frame_jax.run.special_tokens import BOS_NAMES, EOS_NAMES, ChosenTokens, read_special_tokens
from frame_jax.scoring import tokenizers

TEXTS_CHARACTERS = 2_000_000  # encoded at one time
SCORED_SPLITS = [("split", "in", ("train", "held_out"))]


class ModelTokenizer(NamedTuple):
    """How one reference model turns a document into the token ids it scores.

    Attributes:
        bos_id: What it starts a document with.
        tokenizer: Its own; None where it reads the run's tokens.
        digest: Of its own tokenizer; empty for the run's.
    """

    bos_id: int
    tokenizer: Tokenizer | None = None
    digest: str = ""


def model_tokenizer(config: RunConfig, directory: RunDirectory, name: str) -> ModelTokenizer:
    """How a reference model (weak, strong, third) reads documents.

    Raises:
        UserError: as `load_own_tokenizer`.
    """
    bos_id = read_special_tokens(directory).bos_id
    if config.scoring.unit == "token" or name not in config.reference.imported:
        return ModelTokenizer(bos_id)
    key, checkpoint = config.reference.imported[name]
    folder = local_copy(checkpoint, is_checkpoint)
    path = tokenizers.tokenizer_of(folder, key)
    theirs, ours = tokenizers.read_tokenizer(path), tokenizers.read_tokenizer(directory.tokenizer)
    if not any(tokenizers.tokenizer_differences(theirs, ours, bos_id)):
        return ModelTokenizer(bos_id)
    own, _ = load_own_tokenizer(folder, key, config.tokenizer.bos_token)
    digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    return ModelTokenizer(own.bos_id, own, digest)


def load_own_tokenizer(
    folder: Path, key: str, bos_token: str | None, vocab_size: int | None = None
) -> tuple[Tokenizer, ChosenTokens]:
    """Loads a checkpoint's own tokenizer and chooses the token that starts a document: the run's if
    it has that, else the first usual name that it has; returns the choice and its reason too.

    `key` is the setting that names the checkpoint, for messages, `bos_token` what
    `tokenizer.bos_token` says; `vocab_size`, rows of the model's embedding, is compared if given.

    Raises:
        UserError: where it has none, none of the usual tokens that start or end a text, or a token
            of text that the model has no row for.
    """
    path = tokenizers.tokenizer_of(folder, key)
    parsed = tokenizers.read_tokenizer(path)
    ids, names = tokenizers.token_ids(parsed), (*BOS_NAMES, *EOS_NAMES)
    asked = bos_token if bos_token in ids else None
    if asked is None and not any(name in ids for name in names):
        raise UserError(
            f"{key}: {path} has none of the usual tokens that start or end a text "
            f"({', '.join(names)}): add the one that the model was trained with"
        )
    backend, chosen = load_given_tokenizer(TokenizerConfig(path=str(path), bos_token=asked))
    if vocab_size is not None:
        tokenizers.require_rows(vocab_size, parsed, ids[chosen.bos], key, own=path)
    return make_tokenizer(backend, ids[chosen.bos], ids[chosen.eos]), chosen


def bos_messages(config: RunConfig) -> Iterator[str]:
    """Says with which token each model that has its own tokenizer starts documents, and why.

    Raises:
        UserError: as `load_own_tokenizer`, and for a damaged file of a checkpoint.
    """
    if config.scoring.unit == "token":
        return
    for name, (key, checkpoint) in config.reference.imported.items():
        folder = local_copy(checkpoint, is_checkpoint)
        tokenizer, chosen = load_own_tokenizer(folder, key, config.tokenizer.bos_token)
        others = other_bos_messages(tokenizer, chosen, folder)
        chosen_bos = (
            f"{key}: the {name} model starts documents with {chosen.bos!r} (id "
            f"{tokenizer.bos_id}), {chosen.bos_reason}"
        )
        yield "; but ".join([chosen_bos, *others])


def encode_texts(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """Yields the token ids of each text, in order, holding a few texts at a time."""
    for batch in batch_by_size(texts, len, TEXTS_CHARACTERS):
        yield from tokenizer.encode_arrays(batch)


def spread_evenly(items: Any, most: int | None) -> Any:
    """At most `most` items of a sequence, evenly spaced; None for all."""
    return items if most is None else items[:: max(1, -(-len(items) // most))]


def read_index(part: Path, *columns: str, most: int | None = None) -> pa.Table:
    """Columns of a token part's scored documents, or of `most` of them, evenly spaced."""
    return spread_evenly(pq.read_table(part, columns=[*columns], filters=SCORED_SPLITS), most)


def model_tokens_path(directory: RunDirectory, name: str, part: Path) -> Path:
    """Where the ids of a model's own tokenizer lie while a token part is scored under it."""
    return directory.scores / f".tmp-tokens-{name}" / f"{part.stem}.arrayrecord"


def write_model_tokens(
    config: RunConfig, directory: RunDirectory, name: str, parts: list[Path], most: int | None
) -> None:
    """Encodes the documents of token parts that `read_index` gives by a model's own tokenizer;
    every process calls it. A record is a document, in their order.

    Texts are what the run's tokens spell, which is what the target model is trained on.
    """
    map_parts(
        ModelTokenWriter(config, directory, name, most),
        {part.stem: part for part in parts},
        config.workers,
        name=f"encode for {name}",
        unit="documents",
        work_bytes=sum(part.with_suffix(".arrayrecord").stat().st_size for part in parts),
    )


@dataclass(frozen=True)
class ModelTokenWriter:
    """Encodes token parts, each given by the path of its table, for one model."""

    config: RunConfig
    directory: RunDirectory
    name: str
    most: int | None

    @functools.cached_property
    def tokenizers(self) -> tuple[Tokenizer, Tokenizer]:
        """The run's, and the model's own."""
        own = model_tokenizer(self.config, self.directory, self.name).tokenizer
        assert own is not None
        return load_tokenizer(self.directory), own

    def __call__(self, part: Path, advance: Advance) -> None:
        ours, own = self.tokenizers
        rows = read_index(part, "row", most=self.most)["row"].to_numpy()
        texts = map(ours.decode, read_documents(part.with_suffix(".arrayrecord"), rows))
        with write_tokens(model_tokens_path(self.directory, self.name, part)) as records:
            for ids in encode_texts(texts, own):
                records.append(ids)
        advance(len(rows))
