"""A long text has the ids that its tokenizer gives to the whole of it, whatever the tokenizer."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
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
    return tokenizer._backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(pieces=st.lists(PIECES, min_size=1, max_size=30))
def test_windows_give_the_ids_of_the_whole(kind, pieces):
    tokenizer, text = made(kind), "".join(pieces)
    expected = whole(tokenizer, text)
    for overlap in (64, 256):
        found = tokenizer._encode_windows(text, 4 * overlap, overlap)
        if found is not None:  # where windows do not agree, larger ones are tried
            assert found.tolist() == expected
    # All of it, with windows as small.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW", 256)
        patch.setattr(module, "OVERLAPS", (64, 256))
        short = text[:100]
        results = tokenizer.encode_batch([short, text, short])
    assert results == [whole(tokenizer, short), expected, whole(tokenizer, short)]


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LONG)
def test_long_documents_have_the_ids_of_the_whole(kind, name):
    if (kind, name) == ("unigram", "one letter"):
        pytest.skip(
            "all places of the odd letter are equally good: rounding over the whole decides"
        )
    tokenizer, text = made(kind), LONG[name]
    assert len(text) > 2 * module.WINDOW
    [ids] = tokenizer.encode_arrays([text])
    assert ids.dtype == np.uint32
    assert ids.tolist() == whole(tokenizer, text)


def test_ordinary_long_documents_are_never_encoded_whole(monkeypatch):
    tokenizer = made("gpt2")
    monkeypatch.setattr(
        Tokenizer, "_encode_whole", lambda self, texts: [] if not texts else pytest.fail("whole")
    )
    for name in ("paragraphs", "no line ends", "Chinese without line ends"):
        assert len(tokenizer.encode_arrays([LONG[name]])) == 1
