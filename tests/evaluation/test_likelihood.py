"""NLL and misses of continuations against a float64 decoder that packs nothing."""

import numpy as np
import pytest

from frame_jax.config.models import ModelConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.evaluation.likelihood import Request, continuation_sums
from frame_jax.models.transformer import Decoder
from frame_jax.scoring.scorer import Scorer
from tests.arm import random_params
from tests.scoring.numpy_decoder import log_probabilities

CONTEXT, VOCAB = 32, 64


@pytest.fixture(params=[(1, 1), (4, 2)], ids=["1 device", "4 devices"])
def model(request, use_devices):
    devices, fsdp = request.param
    use_devices(devices)
    shape = ModelConfig(
        hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8
    )
    decoder = Decoder(shape, VOCAB, "float32")
    params = random_params(decoder, 0)
    scoring = ScoringConfig(CONTEXT, per_device_batch_size=1, loss_chunk=8, fsdp=fsdp)
    scorer = Scorer([(decoder, params)], scoring, misses=True)
    return scorer, lambda ids: log_probabilities(shape, params, ids)


def test_sums_and_misses_of_packed_requests(model) -> None:
    scorer, log_p = model
    rng = np.random.default_rng(0)
    requests = []
    for _ in range(20):
        prompt = rng.integers(0, VOCAB, rng.integers(1, 20)).tolist()
        ids = list(prompt)
        for _ in range(int(rng.integers(1, 6))):  # half of the continuations are greedy
            likeliest = int(log_p(ids)[-1].argmax())
            ids.append(likeliest if len(requests) % 2 else int(rng.integers(0, VOCAB)))
        requests.append(Request(prompt, ids[len(prompt) :]))
    nll, misses = continuation_sums(scorer, requests)
    for request, loss, missed in zip(requests, nll, misses, strict=True):
        rows = log_p([*request.prompt, *request.continuation][:-1])[len(request.prompt) - 1 :]
        places = range(len(request.continuation))
        expected = -rows[places, list(request.continuation)].sum()
        assert loss == pytest.approx(expected, rel=1e-5)
        assert missed == sum(rows.argmax(-1) != list(request.continuation))
    assert 0 in misses and misses.max() > 0
