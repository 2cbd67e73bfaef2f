"""Each family, both ways: what transformers computes, what it loads, and the same bits back."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from frame_jax.config.models import ExpertsConfig, Mamba2Config, ModelConfig
from frame_jax.models.hugging_face.config import read_config, without_unused_settings
from frame_jax.models.hugging_face.export import model_config, write_weights
from frame_jax.models.hugging_face.weights import import_checkpoint
from frame_jax.models.transformer import Decoder
from frame_jax.run.directory import write_json
from tests.arm import random_params

torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.torch

# The same settings as transformers 4.57.6 writes them to config.json.
OLDER = json.loads((Path(__file__).parent / "configs_4.57.6.json").read_text("utf-8"))
LENGTH = 37  # above two chunks, and no multiple of one
SMALL = {
    "vocab_size": 67,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "initializer_range": 0.2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
ATTENTION = SMALL | HEADS | {"intermediate_size": 24}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 6,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2}
GRANITE = ATTENTION | MAMBA | {"shared_intermediate_size": 20}
FAMILIES = {
    "olmo2": ("Olmo2", ATTENTION),
    "gpt_neox": (
        "GPTNeoX",
        SMALL | {"num_attention_heads": 4, "intermediate_size": 24, "rotary_pct": 0.5},
    ),
    "gpt_neox_sequential": (
        "GPTNeoX",
        SMALL
        | {"num_attention_heads": 4, "intermediate_size": 24, "rotary_emb_base": 500}
        | {"use_parallel_residual": False, "tie_word_embeddings": True},
    ),
    "olmoe": ("Olmoe", ATTENTION | EXPERTS),
    "qwen3_moe": (
        "Qwen3Moe",
        ATTENTION
        | EXPERTS
        | {"moe_intermediate_size": 12, "head_dim": 10, "norm_topk_prob": True}
        | {"num_hidden_layers": 4, "decoder_sparse_step": 2},
    ),
    "mixtral": ("Mixtral", ATTENTION | {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "mamba2": (
        "Mamba2",
        SMALL
        | {"num_heads": 8, "head_dim": 8, "state_size": 6, "n_groups": 2, "chunk_size": 16}
        | {"time_step_limit": [0.05, 2.0], "use_conv_bias": False, "tie_word_embeddings": True},
    ),
    "bamba": ("Bamba", ATTENTION | MAMBA | {"attn_layer_indices": [2]}),
    "granite_experts": (
        "GraniteMoeHybrid",
        GRANITE
        | {"num_local_experts": 5, "num_experts_per_tok": 2, "attention_multiplier": 0.3}
        | {"num_hidden_layers": 4, "layer_types": ["mamba", "attention"] * 2}
        | {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    ),
    "granite_dense": (
        "GraniteMoeHybrid",
        GRANITE
        | {"num_local_experts": 0, "position_embedding_type": "rope"}
        | {"layer_types": ["mamba", "attention", "attention"]},
    ),
}


def make(name: str):
    """A model of a family with random weights, among them those that are trivial at first."""
    family, settings = FAMILIES[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(
        getattr(transformers, f"{family}Config")(**settings)
    ).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.ndim == 1:  # norms, biases, A_log, dt_bias, D
                tensor.add_(torch.randn_like(tensor) * 0.3)
    return model


def logits(decoder: Decoder, params, tokens: np.ndarray) -> np.ndarray:
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)

    @jax.jit
    def compute(params):
        hidden, _ = decoder.forward(params, tokens, np.zeros_like(tokens), positions)
        return hidden @ decoder.unembedding(params).T

    return np.asarray(compute(jax.tree.map(jnp.asarray, params)))


def write(folder: Path, decoder: Decoder, params) -> Path:
    """Config and weights, in more than one file."""
    folder.mkdir()
    write_json(folder / "config.json", model_config(decoder, 1, 2, 128))
    write_weights(folder, decoder, params, 40_000)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_both_ways(name: str, tmp_path: Path) -> None:
    model = make(name)
    model.save_pretrained(tmp_path / "theirs")
    decoder, params = import_checkpoint(tmp_path / "theirs")
    assert read_config(OLDER[name], tmp_path, None) == decoder.config

    tokens = np.random.default_rng(0).integers(0, 67, (2, LENGTH)).astype(np.int32)
    with torch.no_grad():
        ids = torch.tensor(tokens, dtype=torch.long)
        expected = model(ids, use_cache=False).logits.numpy()
    actual = logits(Decoder(decoder.config, decoder.vocab_size, "float32"), params, tokens)
    assert np.abs(expected).max() > 1  # not vacuous
    print("largest difference of a logit:", np.abs(actual - expected).max())
    np.testing.assert_allclose(actual, expected, atol=1e-4, rtol=0)

    folder = write(tmp_path / "ours", decoder, params)
    loaded, aux = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(aux.values()), aux
    assert loaded.config.architectures == model.config.architectures
    with torch.no_grad():
        np.testing.assert_array_equal(loaded.eval()(ids, use_cache=False).logits, expected)
    again, imported = import_checkpoint(folder)
    assert without_unused_settings(again.config) == without_unused_settings(decoder.config)
    jax.tree.map(np.testing.assert_array_equal, imported, params)


@pytest.mark.parametrize("name", ["olmoe", "qwen3_moe", "mixtral", "granite_experts"])
def test_experts_in_one_tensor_are_read_too(name: str, tmp_path: Path) -> None:
    model = make(name)
    model.save_pretrained(tmp_path / "separate")
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    names = (tmp_path / "fused" / "model.safetensors").read_bytes()[:20_000]
    assert b"experts.gate_up_proj" in names and b"experts.0" not in names
    (decoder, params), (other, fused) = (
        import_checkpoint(tmp_path / folder) for folder in ("separate", "fused")
    )
    assert decoder == other
    jax.tree.map(np.testing.assert_array_equal, params, fused)


# No width is a multiple of its heads; where a family of `transformers` has no such heads, another
# one that computes the same is written.
ODD = {"hidden_size": 36, "intermediate_size": 20, "num_layers": 2, "num_heads": 5}
ODD |= {"num_kv_heads": 1, "head_dim": 8}
ODD_MAMBA = Mamba2Config(num_heads=3, head_dim=24, state_size=5, groups=3, chunk_size=8)
ODD_EXPERTS = ExpertsConfig(
    num_experts=3, num_experts_per_token=2, intermediate_size=4, norm_topk_prob=True
)
ODD_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("mistral", {}),
    "one head": ("llama", {"num_heads": 1}),
    "narrow": ("mistral", {"hidden_size": 7, "num_heads": 4, "num_kv_heads": 4, "head_dim": 2}),
    "biases": ("qwen2", {"qkv_bias": True}),
    "normed heads": ("qwen3", {"qk_norm": True}),
    "norms after": (
        "olmo2",
        {"qk_norm": True, "qk_norm_over": "projection", "norm_position": "after"},
    ),
    "experts": ("mixtral", {"layers": ("attention+experts",), "experts": ODD_EXPERTS}),
    "experts, normed heads": (
        "qwen3_moe",
        {"layers": ("attention+experts",), "experts": ODD_EXPERTS, "qk_norm": True},
    ),
    "mixers alone": ("mamba2", {"layers": ("mamba2+none",), "mamba2": ODD_MAMBA}),
    "hybrid": (
        "bamba",
        {"layers": ("mamba2+dense", "attention+dense"), "partial_rotary_factor": 0.5}
        | {"mamba2": ODD_MAMBA},
    ),
    "hybrid without attention": ("bamba", {"layers": ("mamba2+dense",), "mamba2": ODD_MAMBA}),
    "hybrid with experts": (
        "granitemoehybrid",
        {"layers": ("mamba2+experts", "attention+experts"), "partial_rotary_factor": 0.0}
        | {"mamba2": ODD_MAMBA, "experts": ODD_EXPERTS},
    ),
}


@pytest.mark.parametrize("name", ODD_SHAPES)
def test_odd_shapes_are_written_as_a_family_that_takes_them(name: str, tmp_path: Path) -> None:
    expected, settings = ODD_SHAPES[name]
    decoder = Decoder(ModelConfig(**ODD | settings), 67, "float32")
    params = random_params(decoder, 0)
    folder = write(tmp_path / "ours", decoder, params)
    model, aux = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert model.config.model_type == expected and not any(aux.values()), aux
    tokens = np.random.default_rng(0).integers(0, 67, (2, LENGTH)).astype(np.int32)
    with torch.no_grad():
        theirs = model.eval()(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(logits(decoder, params, tokens), theirs, atol=1e-3, rtol=1e-4)
