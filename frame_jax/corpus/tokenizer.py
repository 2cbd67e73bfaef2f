"""The run's tokenizer: text to token ids and back, exactly."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from frame_jax.errors import UserError
from frame_jax.run.directory import RunDirectory, read_json

# A long text is encoded in pieces of about this many characters, so that memory stays small and all
# cores work on it. Pieces end at the end of a line, where byte-level tokenizers end a token anyway.
PIECE_CHARACTERS = 1 << 16
LINE_START = re.compile(r"(?<=\n)(?=\S)")
# Pieces encoded in one call: an encoding takes many times the memory of its text.
CALL_CHARACTERS = 1 << 21


@dataclass(frozen=True)
class Tokenizer:
    """Text to ids and back. Text that spells out a special token is ordinary text.

    Attributes:
        bos_id: Starts a document; may equal `eos_id`.
        eos_id: Ends a document.
        vocab_size: One more than the largest id.
    """

    bos_id: int
    eos_id: int
    vocab_size: int
    _backend: tokenizers.Tokenizer
    _piece_characters: int

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of every text, without special tokens."""
        return [ids.tolist() for ids in self.encode_arrays(texts)]

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `encode_batch`, each a 1-D uint32 array: 4 bytes an id instead of about 36."""
        encoded: list[list[np.ndarray]] = [[] for _ in texts]
        for call in self._calls(texts):
            found = self._backend.encode_batch_fast(
                [piece for _, piece in call], add_special_tokens=False
            )
            for (index, _), encoding in zip(call, found, strict=True):
                encoded[index].append(np.array(encoding.ids, np.uint32))
        return [np.concatenate(pieces) for pieces in encoded]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`. Special tokens among them are spelled out."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def _calls(self, texts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
        """(index of the text, piece) pairs in order, in lists of bounded length."""
        call: list[tuple[int, str]] = []
        characters = 0
        for index, text in enumerate(texts):
            for piece in cut(text, self._piece_characters):
                call.append((index, piece))
                characters += len(piece)
                if characters >= CALL_CHARACTERS:
                    yield call
                    call, characters = [], 0
        if call:
            yield call


def cut(text: str, characters: int) -> Iterator[str]:
    """Pieces of at least `characters` characters that join to `text`; the last may be shorter.

    A piece ends where the next line starts, or after twice as many characters where none does.
    """
    start = 0
    while len(text) - start > 2 * characters:
        found = LINE_START.search(text, start + characters, start + 2 * characters)
        end = found.start() if found else start + 2 * characters
        yield text[start:end]
        start = end
    yield text[start:]


def make_tokenizer(backend: tokenizers.Tokenizer, bos_id: int, eos_id: int) -> Tokenizer:
    """Wraps `backend`, changed in place so that it encodes whole texts and nothing else."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # that is: split the text of special tokens like any other
    # Some tokenizers start every text with a space that decoding takes away: theirs stay whole.
    ids = [backend.encode(text, add_special_tokens=False).ids for text in ("a\n", "b")]
    joins = backend.decode(ids[0] + ids[1], skip_special_tokens=False) == "a\nb"
    return Tokenizer(
        bos_id=bos_id,
        eos_id=eos_id,
        vocab_size=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
        _backend=backend,
        _piece_characters=PIECE_CHARACTERS if joins else 1 << 62,
    )


def special_tokens_path(directory: RunDirectory) -> Path:
    """`{"bos_id", "eos_id", "vocab_size"}`; written last, so it says the tokenizer is there."""
    return directory.tokenizer.with_name("special_tokens.json")


def load_tokenizer(directory: RunDirectory) -> Tokenizer:
    """The tokenizer in a run directory.

    Raises:
        UserError: where the run has none yet.
    """
    path = special_tokens_path(directory)
    if not path.exists():
        raise UserError(f"{directory.root}: has no tokenizer yet: run the phase `tokenize` first")
    special = read_json(path)
    backend = tokenizers.Tokenizer.from_file(str(directory.tokenizer))
    return make_tokenizer(backend, special["bos_id"], special["eos_id"])
