"""The run's tokenizer: text to token ids and back, exactly."""

import array
import itertools
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from frame_jax.errors import UserError
from frame_jax.packing import batch_by_size
from frame_jax.run.directory import RunDirectory
from frame_jax.run.special_tokens import read_special_tokens, special_tokens_path

# A longer text is encoded in windows of so many characters, so that memory stays small and all
# cores work on it. Neighbours share `overlap` characters: a window's tokens near its ends may be
# others than the whole text's, and are taken from the neighbour.
WINDOW = 1 << 16
OVERLAPS = (1 << 11, 1 << 14, 1 << 17)  # the next where neighbours do not agree in the one before
# Characters encoded in one call: an encoding takes many times the memory of its text, and eight
# times as many take a tenth longer, because what is allocated leaves the processor's cache.
CALL_CHARACTERS = 1 << 18


@dataclass(frozen=True)
class Tokenizer:
    """Converts text to token ids and back; text that spells a special token is ordinary text.

    Attributes:
        bos_id: Starts a document; may equal `eos_id`.
        eos_id: Ends a document.
        vocab_size: One more than the largest id.
        strips_blank: Whether a single blank at the start of a text is lost in its ids.
        lossless: Whether the ids of any text spell it, as `is_lossless` proves.
        backend: The library's tokenizer, by which all is done.
    """

    bos_id: int
    eos_id: int
    vocab_size: int
    strips_blank: bool
    lossless: bool
    backend: tokenizers.Tokenizer

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of every text, without special tokens."""
        return [ids.tolist() for ids in self.encode_arrays(texts)]

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `encode_batch`, each a 1-D uint32 array: 4 bytes an id instead of about 36."""
        encoded: list[np.ndarray] = []
        for is_long, group in itertools.groupby(texts, lambda text: len(text) > 2 * WINDOW):
            same = list(group)
            encoded += map(self._encode_long, same) if is_long else self._encode_whole(same)
        return encoded

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`. Special tokens among them are spelled out."""
        return self._restored(self.backend.decode([int(i) for i in ids], skip_special_tokens=False))

    def _restored(self, text: str) -> str:
        return f" {text}" if self.strips_blank and text.startswith(" ") else text

    def losses(self, texts: Sequence[str], encoded: Sequence[np.ndarray]) -> list[str | None]:
        """What the ids that `encode_arrays` gives lose of each text; None where they spell it.

        Texts are compared up to Unicode's canonical equivalence, because some widely used
        tokenizers compose characters (NFC), which by Unicode's definition leaves the text the same.
        A single blank at the start may be lost, which is the way of newer Llama and Mistral files.
        Ids of a `lossless` tokenizer are not decoded for it.
        """
        decoded = texts
        if not self.lossless:
            ids = [each.tolist() for each in encoded]
            decoded = self.backend.decode_batch(ids, skip_special_tokens=False)
        return [self._loss(*each) for each in zip(texts, encoded, decoded, strict=True)]

    def _loss(self, text: str, ids: np.ndarray, decoded: str) -> str | None:
        if ((ids == self.bos_id) | (ids == self.eos_id)).any():
            return f"{text[:20]!r}... is encoded with the BOS or EOS token"
        if text == decoded:
            return None
        wanted, given = (unicodedata.normalize("NFC", t) for t in (text, self._restored(decoded)))
        if wanted == given or (self.strips_blank and wanted == f" {given}"):
            return None
        pairs = enumerate(zip(wanted, given, strict=False))
        at = next((i for i, (x, y) in pairs if x != y), min(len(wanted), len(given)))
        return f"{wanted[at : at + 20]!r} comes back as {given[at : at + 20]!r} (character {at})"

    def remedy(self, text: str) -> str:
        """What to do about a text that the ids of this tokenizer, a given one, do not spell."""
        if "ByteLevel" not in repr(self.backend.decoder):
            return "choose a byte-level tokenizer"
        added = self.backend.get_added_tokens_decoder().values()
        names = [repr(t.content) for t in added if not t.special and t.content in text]
        suspects = [f"an added token ({', '.join(names[:3])})"] if names else []
        suspects += ["the normalizer"] if self.backend.normalizer is not None else []
        return f"take out of the file what changes texts: {' or '.join(suspects) or 'the cutting'}"

    def _encode_whole(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded: list[np.ndarray] = []
        for call in batch_by_size(texts, len, CALL_CHARACTERS):
            found = self.backend.encode_batch_fast(call, add_special_tokens=False)
            # By way of array: np.array takes half as long again for a list of integers.
            encoded += [np.frombuffer(array.array("I", each.ids), np.uint32) for each in found]
        return encoded

    def _encode_long(self, text: str) -> np.ndarray:
        for overlap in OVERLAPS:
            found = self._encode_windows(text, max(WINDOW, 4 * overlap), overlap)
            if found is not None:
                return found
        return self._encode_whole([text])[0]

    def _encode_windows(self, text: str, window: int, overlap: int) -> np.ndarray | None:
        """Encodes a text by overlapping windows; None where two neighbours do not agree."""
        stride = window - overlap
        starts = range(0, max(len(text) - overlap, 1), stride)
        pieces: list[np.ndarray] = []
        ids, spans = np.zeros(0, np.uint32), np.zeros((0, 2), np.int64)
        texts = (text[start : start + window] for start in starts)
        encodings = (
            encoding
            for call in batch_by_size(texts, len, CALL_CHARACTERS)
            for encoding in self.backend.encode_batch(call, add_special_tokens=False)
        )
        for start, encoding in zip(starts, encodings, strict=True):
            next_ids = np.array(encoding.ids, np.uint32)
            next_spans = np.array(encoding.offsets, np.int64).reshape(-1, 2) + start
            if start:
                middle = (start + overlap // 4, start + overlap - overlap // 4)
                joint = find_agreement((ids, spans), (next_ids, next_spans), middle)
                if joint is None:
                    return None
                pieces.append(ids[: joint[0]])
                next_ids, next_spans = next_ids[joint[1] :], next_spans[joint[1] :]
            ids, spans = next_ids, next_spans
        return np.concatenate([*pieces, ids])


Encoded = tuple[np.ndarray, np.ndarray]


def find_agreement(
    left: Encoded, right: Encoded, middle: tuple[int, int]
) -> tuple[int, int] | None:
    """Where the tokens of two overlapping windows may be joined: an index into each.

    What both make of the `middle` of their overlap depends on where neither begins or ends, so it
    is what the whole text gives. A text without such a middle is, say, one long word.

    Windows are ids [tokens] and places [tokens, 2], which are, like the middle, a first character
    and one past the last, in the whole text.

    Returns:
        None where the tokens that begin in the middle differ, or where there are none.
    """
    found = []
    for ids, spans in (left, right):
        inside = np.flatnonzero((spans[:, 0] >= middle[0]) & (spans[:, 0] < middle[1]))
        if len(inside) == 0 or inside[-1] - inside[0] + 1 != len(inside):
            return None
        found.append((inside[0], ids[inside], spans[inside]))
    (first, ids, spans), (second, other_ids, other_spans) = found
    if not np.array_equal(ids, other_ids) or not np.array_equal(spans, other_spans):
        return None
    half = len(ids) // 2
    return int(first) + half, int(second) + half


def make_tokenizer(backend: tokenizers.Tokenizer, bos_id: int, eos_id: int) -> Tokenizer:
    """Wraps `backend`, changed in place so that it encodes whole texts and nothing else."""
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None  # some training asks for it: other ids every time
    backend.encode_special_tokens = True  # that is: split the text of special tokens like any other
    # Some start every text with a blank unless there is one, and take the first away in decoding.
    blanks = backend.encode("  a", add_special_tokens=False).ids
    return Tokenizer(
        bos_id=bos_id,
        eos_id=eos_id,
        vocab_size=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
        strips_blank=backend.decode(blanks, skip_special_tokens=False) == " a",
        lossless=is_lossless(backend),
        backend=backend,
    )


def is_lossless(backend: tokenizers.Tokenizer) -> bool:
    """Whether the ids of any text spell it exactly, by what the library does; False in any doubt.

    So it is for byte-level BPE: nothing normalises, all cuts keep what they cut, each byte is a
    token, no id stands for two, nothing is appended to pieces, and an added token is matched and
    decoded as it is spelled. `backend` splits special tokens like any other text.
    """
    model, vocabulary = backend.model, backend.get_vocab(with_added_tokens=False)
    *cuts, spelling = _steps(backend.pre_tokenizer) or [{}]
    after, added = _steps(backend.post_processor), backend.get_added_tokens_decoder()
    return (
        isinstance(model, models.BPE)
        and not model.continuing_subword_prefix
        and not model.end_of_word_suffix
        and backend.normalizer is None
        and all(
            cut["type"] == "Digits" or (cut["type"] == "Split" and cut["behavior"] != "Removed")
            for cut in cuts
        )
        and spelling.get("type") == "ByteLevel"
        and not spelling["add_prefix_space"]
        and vocabulary.keys() >= set(pre_tokenizers.ByteLevel.alphabet())
        and len(set(vocabulary.values())) == len(vocabulary)
        and [step["type"] for step in _steps(backend.decoder)] == ["ByteLevel"]
        and all(
            step["type"] == "ByteLevel"
            or [x["Sequence"]["id"] for x in step.get("single", ()) if "Sequence" in x] == ["A"]
            for step in after
        )
        and all(
            model.id_to_token(number) in (None, token.content)
            and (token.special or not (token.lstrip or token.rstrip))
            and (
                token.special
                or backend.decode([number], skip_special_tokens=False) == token.content
            )
            for number, token in added.items()
        )
    )


def _steps(component: Any) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, decoder or post-processor, as they stand in its file."""
    if component is None:
        return []
    state = json.loads(component.__getstate__())
    kinds = ("pretokenizers", "decoders", "processors")
    return next((state[kind] for kind in kinds if kind in state), [state])


def load_tokenizer(directory: RunDirectory) -> Tokenizer:
    """Loads the tokenizer of a run directory.

    Raises:
        UserError: where the run has none yet.
    """
    if not special_tokens_path(directory).exists():
        raise UserError(f"{directory.root}: has no tokenizer yet: run the phase `tokenize` first")
    special_tokens = read_special_tokens(directory)
    backend = tokenizers.Tokenizer.from_file(str(directory.tokenizer))
    return make_tokenizer(backend, special_tokens.bos_id, special_tokens.eos_id)
