"""Imported checkpoints compute what transformers computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frame_jax.models.hugging_face.weights import import_checkpoint
from frame_jax.models.transformer import Decoder

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.torch

SHAPE = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES = {
    "llama": ("Llama", {}),
    "llama_without_groups": ("Llama", {"num_key_value_heads": 6, "rope_theta": 50_000.0}),
    "llama3_rope": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "smollm2": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 3}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2_untied": ("Qwen2", {"num_key_value_heads": 3, "rms_norm_eps": 1e-3}),
    "qwen3": ("Qwen3", {"head_dim": 24}),
    "qwen3_tied": ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
}


@pytest.fixture(params=FAMILIES)
def checkpoint(request, tmp_path):
    """A random checkpoint of each family, with norms and biases that are not the trivial ones."""
    family, settings = FAMILIES[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SHAPE | settings)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                tensor.add_(torch.randn_like(tensor) * 0.3)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    return model, tmp_path


def logits(decoder: Decoder, params, tokens: np.ndarray) -> np.ndarray:
    params = jax.tree.map(jnp.asarray, params)
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = decoder.forward(params, tokens, np.zeros_like(tokens), positions)
    return np.asarray(hidden @ decoder.unembedding(params).T)


def test_logits_agree_in_float32(checkpoint):
    model, folder = checkpoint
    assert len(list(folder.glob("*.safetensors"))) > 1, "the sharded form is the one to test"
    decoder, params = import_checkpoint(folder)
    # Lengths that this backend's attention computes in two different ways.
    for length in (150, 256):
        tokens = np.random.default_rng(0).integers(0, 211, (2, length)).astype(np.int32)
        with torch.no_grad():
            expected = model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
        actual = logits(Decoder(decoder.config, decoder.vocab_size, "float32"), params, tokens)
        assert np.abs(expected).max() > 1  # not vacuous
        print("largest difference of a logit:", np.abs(actual - expected).max())
        np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=0)
