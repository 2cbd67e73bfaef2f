"""Rates continuations of prompts by their log-likelihood under a scorer's model.

The rules are lm-evaluation-harness's, so that results compare: prompt and continuation are
tokenized together and cut where the tokens of the prompt alone end, blanks at the end of a prompt
belong to the continuation, and what is longer than the model's context loses its beginning. A BOS
stands before every prompt, as before every training document.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from frame_jax.corpus.tokenizer import Tokenizer
from frame_jax.scoring.documents import score_windows
from frame_jax.scoring.scorer import Scorer
from frame_jax.scoring.windows import Window


class Request(NamedTuple):
    """A continuation to rate after a prompt: token ids, at least one of each."""

    prompt: Sequence[int]
    continuation: Sequence[int]


def encode_requests(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[Request]:
    """Tokenizes pairs of prompt and continuation, each prompt with a BOS before it."""
    moved = []
    for prompt, continuation in pairs:
        bare = prompt.rstrip()
        moved.append((bare, prompt[len(bare) :] + continuation))
    contexts = {prompt: number for number, prompt in enumerate(dict.fromkeys(p for p, _ in moved))}
    context_ids = tokenizer.encode_batch(list(contexts))
    whole_ids = tokenizer.encode_batch([prompt + continuation for prompt, continuation in moved])
    requests = []
    for (prompt, continuation), whole in zip(moved, whole_ids, strict=True):
        before = context_ids[contexts[prompt]]
        # A continuation that melts into the prompt's last token is tokenized on its own.
        ids = whole[len(before) :] or tokenizer.encode_batch([continuation])[0]
        requests.append(Request([tokenizer.bos_id, *before], ids))
    return requests


def request_windows(requests: Iterable[Request], context: int) -> Iterator[Window]:
    """Yields the window that scores each request: its last tokens, at most `context` of them."""
    for number, request in enumerate(requests):
        ids = np.array([*request.prompt, *request.continuation][-(context + 1) :], np.int32)
        counted = min(len(request.continuation), len(ids) - 1)
        yield Window(number, ids, len(ids) - 1 - counted, last=True)


def continuation_sums(scorer: Scorer, requests: Iterable[Request]) -> np.ndarray:
    """Sums the scorer's values over the continuation of each request, which are read as needed.

    A `Scorer` gives the NLL in nats under each model.

    Returns:
        [values, requests] float64, in the order of the requests.
    """
    windows = request_windows(requests, scorer.context)
    number, sums = score_windows(scorer, windows, scorer.context)
    return sums[:, np.argsort(number)]
