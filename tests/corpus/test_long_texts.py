"""A long text has the ids that its tokenizer gives to the whole of it, whatever the tokenizer."""

import functools
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from frame_jax.corpus import tokenizer as module
from frame_jax.corpus.tokenizer import Tokenizer, make_tokenizer
from tests.corpus.tokenizer_kinds import CHINESE, ENGLISH, KINDS

# What texts are made of: runs of one character, line ends, numbers, and words.
PIECES = st.one_of(
    st.builds(lambda c, n: c * n, st.sampled_from(" \n\t.=x0/的"), st.integers(1, 300)),
    st.sampled_from(
        ["\r\n", "\n\n", " \n ", "\u3000", "'ll", "/", ".\n/", "<s>", "👩‍👩‍👧", "e\u0301"]
    ),
    st.integers(0, 10**40).map(str),
    st.integers(0, len(ENGLISH) - 400).flatmap(
        lambda start: st.integers(1, 400).map(lambda n: ENGLISH[start : start + n])
    ),
    st.integers(0, 60).map(lambda start: CHINESE[start:]),
)


@functools.cache
def made(kind: str) -> Tokenizer:
    return make_tokenizer(KINDS[kind](), 1, 2)


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.backend.encode(text, add_special_tokens=False).ids


@functools.cache
def log_probabilities() -> np.ndarray:
    vocabulary = json.loads(made("unigram").backend.to_str())["model"]["vocab"]
    return np.array([score for _, score in vocabulary])


def assert_ids_of_the_whole(kind: str, found: list[int], expected: list[int]) -> None:
    """Equal, or, where the most likely pieces are asked for, other pieces that are as likely: of a
    letter repeated, several cuts are, and rounding over the whole text decides between them."""
    if found == expected:
        return
    assert kind == "unigram"
    assert len(found) == len(expected)
    tokenizer, scores = made(kind), log_probabilities()
    assert tokenizer.decode(found) == tokenizer.decode(expected)
    np.testing.assert_allclose(scores[found].sum(), scores[expected].sum(), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(pieces=st.lists(PIECES, min_size=1, max_size=30))
@example(pieces=[CHINESE, "x" * 264])
def test_windows_give_the_ids_of_the_whole(kind, pieces):
    tokenizer, text = made(kind), "".join(pieces)
    expected = whole(tokenizer, text)
    for overlap in (64, 256):
        found = tokenizer._encode_windows(text, 4 * overlap, overlap)
        if found is not None:  # where windows do not agree, larger ones are tried
            assert_ids_of_the_whole(kind, found.tolist(), expected)
    # All of it, with windows as small.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW", 256)
        patch.setattr(module, "OVERLAPS", (64, 256))
        short = text[:100]
        results = tokenizer.encode_batch([short, text, short])
    assert [results[0], results[2]] == [whole(tokenizer, short)] * 2
    assert_ids_of_the_whole(kind, results[1], expected)


TIMES = 1 + 140_000 // len(ENGLISH)
LONG = {
    # Line after line, an empty one between them: GPT-2's pattern looks at what follows blanks.
    "paragraphs": ENGLISH.replace("\n", "\n\n") * TIMES,
    "no line ends": ENGLISH.replace("\n", " ") * TIMES,
    "Chinese without line ends": CHINESE.replace("!", "。") * 2000,
    "one letter": "x" * 200_001,
    "digits": ("1234567" * 701 + " ") * 30,
    "blanks": " " * 150_001 + "end",
    "empty lines": "a" + "\n" * 150_003 + "b",
    "a long word at every joint": ("word " * 12_000 + "y" * 5_000) * 3,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LONG)
def test_long_documents_have_the_ids_of_the_whole(kind, name):
    tokenizer, text = made(kind), LONG[name]
    assert len(text) > 2 * module.WINDOW
    [ids] = tokenizer.encode_arrays([text])
    assert ids.dtype == np.uint32
    assert_ids_of_the_whole(kind, ids.tolist(), whole(tokenizer, text))


def test_ordinary_long_documents_are_never_encoded_whole(monkeypatch):
    tokenizer = made("gpt2")
    monkeypatch.setattr(
        Tokenizer, "_encode_whole", lambda self, texts: [] if not texts else pytest.fail("whole")
    )
    for name in ("paragraphs", "no line ends", "Chinese without line ends"):
        assert len(tokenizer.encode_arrays([LONG[name]])) == 1
