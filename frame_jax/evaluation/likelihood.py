"""Texts and continuations in, log-likelihoods of the continuations under a scorer's model out.

The rules are lm-evaluation-harness's, so that results compare: prompt and continuation are
tokenized together and cut where the tokens of the prompt alone end, blanks at the end of a prompt
belong to the continuation, and what is longer than the model's context loses its beginning. A BOS
stands before every prompt, as before every training document.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from frame_jax.corpus.tokenizer import Tokenizer
from frame_jax.scoring.documents import POOL_ROWS
from frame_jax.scoring.packing import Batch, make_batches, pack_windows, window_sums
from frame_jax.scoring.scorer import Scorer
from frame_jax.scoring.windows import Window


class Request(NamedTuple):
    """A continuation to rate after a prompt, in token ids.

    Attributes:
        prompt: At least one id.
        continuation: At least one id.
    """

    prompt: Sequence[int]
    continuation: Sequence[int]


def encode_requests(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[Request]:
    """Requests for pairs of prompt and continuation, each prompt with a BOS before it."""
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


def request_window(number: int, request: Request, context: int) -> Window:
    """What the model reads of a request: at most `context` tokens, the last ones."""
    ids = np.array([*request.prompt, *request.continuation][-(context + 1) :], np.int32)
    counted = min(len(request.continuation), len(ids) - 1)
    return Window(number, ids, len(ids) - 1 - counted, last=True)


def continuation_sums(
    scorer: Scorer,
    requests: Iterable[Request],
    count: int,
) -> np.ndarray:
    """Sums over each request's continuation of what the scorer says of every token.

    Args:
        scorer: One value or more a token; a `Scorer` gives the NLL in nats under each model.
        requests: Read as needed.
        count: How many there are.

    Returns:
        [values, count] float64, in the order of the requests.
    """

    def windows() -> Iterator[Window]:
        for number, request in enumerate(requests):
            yield request_window(number, request, scorer.context)

    sums: list[tuple[list[int], np.ndarray]] = []

    def read(batch: Batch, values: jax.Array) -> None:
        sums.append(([w.document for w in batch.windows], window_sums(np.asarray(values), batch)))

    rows = pack_windows(windows(), scorer.context, POOL_ROWS)
    under_way: tuple[Batch, jax.Array] | None = None
    for batch in make_batches(rows, scorer.rows, scorer.context):
        started = (batch, scorer(batch))
        if under_way is not None:
            read(*under_way)
        under_way = started
    if under_way is not None:
        read(*under_way)

    result = np.zeros((len(sums[0][1]) if sums else 1, count))
    for numbers, values in sums:
        result[:, numbers] = values
    return result
