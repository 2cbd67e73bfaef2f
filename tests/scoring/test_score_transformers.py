"""A document's NLL is the one transformers computes for that document alone."""

import json

import numpy as np
import pytest

from frame_jax.config.scoring import ScoringConfig
from frame_jax.models.hugging_face.weights import import_checkpoint
from frame_jax.models.transformer import Decoder
from frame_jax.scoring.documents import score_documents
from frame_jax.scoring.scorer import Scorer
from tests.scoring.scoring_helpers import BOS

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.torch

CONTEXT, OVERLAP = 64, 24
TEXTS = {
    "nothing": "",
    "one token": "a",
    "a few": "Hello, world!",
    "exactly one window": "x" * CONTEXT,
    "one token more than a window": "x" * (CONTEXT + 1),
    "many windows": "The quick brown fox jumps over the lazy dog. " * 60,
    "Chinese": "四象限多阶段预训练把语料按困惑度与困惑度差排序。" * 4,
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈🎉" * 5,
    "code": "def f(x):\n    return {k: v for k, v in x.items() if v is not None}\n",
    "Arabic and control characters": "مرحبا\u200f\x00\x1b[31m بالعالم",
}


def save_model(folder, seed, **shape):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=258,
        max_position_embeddings=256,
        initializer_range=0.15,
        num_attention_heads=4,
        num_key_value_heads=2,
        **shape,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def nll_alone(model, tokens):
    """NLL sum of one document by the sliding-window recipe, one window a forward pass."""
    ids = torch.tensor([[BOS, *tokens]])
    total, counted_to, start = 0.0, 0, 0
    while counted_to < len(tokens):
        window = ids[:, start : start + CONTEXT]
        with torch.no_grad():
            log_p = model(window).logits.double().log_softmax(-1)[0]
        end = min(start + CONTEXT, len(tokens))
        targets = ids[0, counted_to + 1 : end + 1]
        places = torch.arange(counted_to - start, end - start)
        total -= log_p[places, targets].sum().item()
        counted_to, start = end, end + 1 - OVERLAP
    return total


def test_nll_sums_agree_with_transformers(tmp_path):
    shapes = (
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3},
    )
    theirs = [save_model(tmp_path / str(i), i, **shape) for i, shape in enumerate(shapes)]
    ours = []
    for i in range(2):
        decoder, params = import_checkpoint(tmp_path / str(i), longest=CONTEXT)
        ours.append((Decoder(decoder.config, decoder.vocab_size, "float32"), params))
    documents = [np.frombuffer(text.encode(), np.uint8) + 2 for text in TEXTS.values()]
    expected = np.array([[nll_alone(model, tokens) for tokens in documents] for model in theirs])
    # Rows of 192 and 512 tokens, whose attention is computed in two different ways.
    for rows in (3, 8):
        scorer = Scorer(ours, ScoringConfig(CONTEXT, per_device_batch_size=rows, loss_chunk=50))
        scores = score_documents(scorer, documents, bos_id=BOS, overlap=OVERLAP)
        assert list(scores.predicted_tokens) == [len(text.encode()) for text in TEXTS.values()]
        nothing = scores.predicted_tokens == 0
        assert np.all(scores.nll[:, nothing] == 0) and nothing.sum() == 1
        disagreement = np.abs(scores.nll - expected).max(axis=0)
        disagreement[~nothing] /= np.abs(expected[:, ~nothing]).min(axis=0)
        print(json.dumps(dict(zip(TEXTS, disagreement.tolist(), strict=True)), indent=1))
        assert disagreement.max() < 1e-4
