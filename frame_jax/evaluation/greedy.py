"""Token ids in; NLL, whether each token is the likeliest one, and likeliest next tokens out.

What a benchmark asks of a model beyond the NLL that `scoring.scorer` gives. Works on the devices of
this process, as scoring does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from frame_jax.config.scoring import ScoringConfig
from frame_jax.models.cross_entropy import likeliest_tokens
from frame_jax.models.transformer import Decoder, Params
from frame_jax.scoring.scorer import Scorer, hidden_states, matmul_precision

# [rows, context] int32, the rows' tokens from the left, and how many there are in each, at least 1
# ([rows] int32), to the likeliest token after each ([rows] int32).
NextTokens = Callable[[np.ndarray, np.ndarray], jax.Array]


def make_greedy_scorer(
    decoder: Decoder, params: Params, scoring: ScoringConfig
) -> tuple[Scorer, NextTokens]:
    """A scorer whose values are [2, rows, context], NLL in nats and misses, and its next tokens.

    A miss is 1 where another token is likelier than the target, otherwise 0.
    """
    scorer = Scorer([(decoder, params)], scoring, misses=True)
    return scorer, scorer.map_rows(next_tokens, 2)


def next_tokens(
    models: tuple[Decoder],
    specs: tuple[Any],
    params: tuple[Params],
    ids: jax.Array,
    lengths: jax.Array,
) -> jax.Array:
    """What one device does to continue its rows: [rows] int32."""
    rows, context = ids.shape
    positions = jnp.broadcast_to(jnp.arange(context), (rows, context))
    # Attention is causal: what lies behind a row's end cannot matter.
    segments = jnp.zeros_like(ids)
    with matmul_precision(models[0]):
        hidden, w = hidden_states(models[0], params[0], specs[0], ids, segments, positions)
        last = hidden[jnp.arange(rows), lengths - 1][:, None]
        return likeliest_tokens(last, w, 1)[:, 0]


def generate_greedily(
    scorer: Scorer,
    following: NextTokens,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    is_finished: Callable[[int, list[int]], bool],
) -> list[list[int]]:
    """Continues prompts, of one id at least, with the likeliest token, again and again; returns the
    tokens written for each.

    Every token costs a pass over the whole context, because nothing is kept from one to the next.
    Prompt and limit, the tokens to write at most, together fit into the context. `is_finished` is
    asked after each token, with the prompt's number and the tokens written.
    """
    written: list[list[int]] = [[] for _ in prompts]
    waiting = iter(range(len(prompts)))
    ids = np.zeros((scorer.rows, scorer.context), np.int32)
    lengths = np.ones(scorer.rows, np.int32)
    owners: list[int | None] = [None] * scorer.rows
    while True:
        for row, owner in enumerate(owners):
            if owner is None and (owner := next(waiting, None)) is not None:
                owners[row], lengths[row] = owner, len(prompts[owner])
                ids[row, : lengths[row]] = prompts[owner]
        if not any(owner is not None for owner in owners):
            return written
        tokens = np.asarray(following(ids, lengths))
        for row, owner in enumerate(owners):
            if owner is None:
                continue
            written[owner].append(int(tokens[row]))
            if len(written[owner]) == limits[owner] or is_finished(owner, written[owner]):
                owners[row], lengths[row] = None, 1
            else:
                ids[row, lengths[row]] = tokens[row]
                lengths[row] += 1
