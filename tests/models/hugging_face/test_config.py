"""Which family computes a decoder, which settings none has, and what of a family is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from frame_jax.config.models import ExpertsConfig, Mamba2Config, ModelConfig
from frame_jax.errors import UserError
from frame_jax.models.hugging_face.config import (
    FAMILIES,
    find_layout,
    read_config,
    without_unused_settings,
)
from frame_jax.models.hugging_face.export import model_config
from frame_jax.models.hugging_face.tensors import checkpoint_tensors
from frame_jax.models.hugging_face.weights import import_checkpoint
from frame_jax.models.transformer import Decoder
from frame_jax.run.directory import write_json

# As transformers 4.57.6 writes them; newer ones are made by the tests that compare with it.
WRITTEN = json.loads((Path(__file__).parent / "configs_4.57.6.json").read_text("utf-8"))

SMALL = {"hidden_size": 16, "intermediate_size": 12, "num_layers": 4, "num_heads": 2}
MAMBA = Mamba2Config(num_heads=4, head_dim=8, state_size=3, groups=2, min_time_step=0.5)
EXPERTS = ExpertsConfig(
    num_experts=3, num_experts_per_token=2, intermediate_size=5, norm_topk_prob=True
)
SHARED = dataclasses.replace(EXPERTS, shared_expert_intermediate_size=7)
NEOX = {
    "norm": "layer",
    "activation": "gelu",
    "bias": True,
    "qkv_bias": True,
    "partial_rotary_factor": 0.5,
    "num_kv_heads": 2,
    "parallel_residual": True,
}
OLMO2 = {"qk_norm": True, "qk_norm_over": "projection", "norm_position": "after"}
ALL_EXPERTS = {"layers": ("attention+experts",), "experts": EXPERTS}
HYBRID: dict[str, Any] = {"layers": ("mamba2+dense", "attention+dense"), "mamba2": MAMBA}
MIXED: dict[str, Any] = {
    "layers": ("mamba2+experts", "mamba2+experts", "attention+experts", "mamba2+experts"),
    "mamba2": MAMBA,
}
COMPUTED: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "wide heads": ("llama", {"head_dim": 12, "tie_embeddings": False}),
    "biases": ("qwen2", {"qkv_bias": True}),
    "normed heads": ("qwen3", {"qk_norm": True}),
    "norms after": ("olmo2", OLMO2),
    "LayerNorm": ("gpt_neox", NEOX),
    "LayerNorm, in sequence, tied": ("gpt_neox", NEOX | {"parallel_residual": False}),
    "LayerNorm, an output": ("gpt_neox", NEOX | {"tie_embeddings": False}),
    "experts": ("mixtral", ALL_EXPERTS),
    "experts, normed heads": ("qwen3_moe", ALL_EXPERTS | {"qk_norm": True}),
    "experts in some layers": (
        "qwen3_moe",
        {"layers": ("attention+dense", "attention+experts"), "experts": EXPERTS, "qk_norm": True},
    ),
    "experts, normed projections": (
        "olmoe",
        ALL_EXPERTS | {"qk_norm": True, "qk_norm_over": "projection"},
    ),
    "a shared expert": ("granitemoehybrid", ALL_EXPERTS | {"experts": SHARED}),
    "Mamba-2": ("mamba2", {"layers": ("mamba2+none",), "mamba2": MAMBA}),
    "Mamba-2 with dense layers": ("bamba", {"layers": ("mamba2+dense",), "mamba2": MAMBA}),
    "a hybrid, half a head rotated": ("bamba", HYBRID | {"partial_rotary_factor": 0.5}),
    "a hybrid, rotated": ("granitemoehybrid", HYBRID),
    "a hybrid without positions": ("granitemoehybrid", HYBRID | {"partial_rotary_factor": 0.0}),
    "a hybrid with experts": ("granitemoehybrid", MIXED | {"experts": EXPERTS}),
    "a hybrid with a shared expert": ("granitemoehybrid", MIXED | {"experts": SHARED}),
    "multipliers": (
        "granitemoehybrid",
        {"embedding_multiplier": 2.0, "logits_divisor": 3.0, "attention_multiplier": 0.5},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPUTED)
def test_a_decoder_is_written_as_the_family_that_computes_it(case: str, tmp_path: Path) -> None:
    expected, settings = COMPUTED[case]
    decoder = Decoder(ModelConfig(**SMALL | settings), 11)
    family, _ = find_layout(decoder.config)
    assert family.model_type == expected
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: random.normal(size=leaf.shape).astype(np.float32), decoder.shapes()
    )
    write_json(tmp_path / "config.json", model_config(decoder, 0, 1, 64))
    for layout in family.layouts:
        tensors = {
            name: t.stored(params) for name, t in checkpoint_tensors(decoder, layout).items()
        }
        save_file(tensors, tmp_path / "model.safetensors")
        again, imported = import_checkpoint(tmp_path)
        assert without_unused_settings(again.config) == without_unused_settings(decoder.config)
        jax.tree.map(np.testing.assert_array_equal, imported, params)


NOT_WRITTEN: dict[str, tuple[dict[str, Any], str]] = {
    "two attentions at once": (
        {"qkv_bias": True, "qk_norm": True},
        "qwen2 has no model.qk_norm = True; qwen3 has no model.qkv_bias = True",
    ),
    "a bias of the router": (
        {"experts": dataclasses.replace(SHARED, router_bias=True), "layers": MIXED["layers"]}
        | {"mamba2": MAMBA},
        "granitemoehybrid has no model.experts.router_bias = True",
    ),
    "sigmoid scores": (
        ALL_EXPERTS
        | {"experts": dataclasses.replace(EXPERTS, scores="sigmoid")}
        | {"qk_norm": True},
        "qwen3_moe has no model.experts.scores = 'sigmoid'",
    ),
    "scaled experts": (
        ALL_EXPERTS | {"experts": dataclasses.replace(EXPERTS, routed_scaling_factor=2.5)},
        "mixtral has no model.experts.routed_scaling_factor = 2.5",
    ),
    "heads of a width of their own": (
        NEOX | {"hidden_size": 18, "num_heads": 4, "num_kv_heads": 4, "head_dim": 8},
        "gpt_neox has no model.head_dim = 8$",
    ),
    "a part of a head": (
        {"partial_rotary_factor": 0.25},
        "has no model.partial_rotary_factor = 0.25",
    ),
    "dense layers and experts in a hybrid": (
        {"layers": ("mamba2+dense", "attention+experts"), "mamba2": MAMBA, "experts": SHARED},
        "granitemoehybrid has no .*model.layers = ",
    ),
    "attention alone": (
        {"layers": ("attention+none", "attention+dense")},
        "model.layers is attention\\+none, attention\\+dense",
    ),
    "a width that is no multiple": (
        HYBRID | {"mamba2": dataclasses.replace(MAMBA, head_dim=6)},
        "model.mamba2.head_dim is 24, model.hidden_size 16",
    ),
}


@pytest.mark.parametrize("case", NOT_WRITTEN)
def test_a_setting_without_a_family_is_named(case: str) -> None:
    settings, expected = NOT_WRITTEN[case]
    with pytest.raises(UserError, match=expected) as error:
        find_layout(ModelConfig(**SMALL | settings))
    assert "cannot be exported" in str(error.value)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("olmoe", {"clip_qkv": 8.0}, "clip_qkv 8.0 is not supported"),
    ("olmoe", {"norm_topk_prob": 1}, "norm_topk_prob is 1, must be true or false"),
    ("olmoe", {"num_experts_per_tok": 9}, "num_experts_per_token"),
    ("olmo2", {"attention_bias": True}, "attention_bias"),
    ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 8}, "8 tokens"),
    ("qwen3_moe", {"num_experts": None}, "has no num_experts"),
    ("qwen3_moe", {"mlp_only_layers": 1}, "mlp_only_layers is 1, must be a list"),
    ("mixtral", {"sliding_window": 16}, "16 tokens"),
    ("mamba2", {"use_bias": True}, "use_bias True"),
    ("mamba2", {"rms_norm": False}, "rms_norm False is not supported, only True"),
    ("mamba2", {"expand": 3}, "num_heads \\* head_dim is 64, must be expand \\* hidden_size, 96"),
    ("mamba2", {"n_groups": 3}, "model.mamba2.groups"),
    ("mamba2", {"time_step_limit": [0.0]}, "time_step_limit .* two numbers"),
    ("mamba2", {"time_step_limit": [0.5, "2"]}, "time_step_limit .* two numbers"),
    ("bamba", {"mamba_proj_bias": True}, "mamba_proj_bias"),
    ("bamba", {"partial_rotary_factor": 1.0}, "partial_rotary_factor"),
    ("gpt_neox", {"hidden_act": "gelu_fast"}, "hidden_act 'gelu_fast'.*'gelu'"),
    ("gpt_neox", {"rotary_pct": "half"}, "rotary_pct is 'half'"),
    ("gpt_neox", {"attention_bias": False}, "attention_bias False"),
    ("gpt_neox", {"rotary_pct": 0.3, "hidden_size": 40}, "partial_rotary_factor"),
    ("granite_dense", {"position_embedding_type": "alibi"}, "position_embedding_type 'alibi'"),
    ("granite_dense", {"normalization_function": "layernorm"}, "normalization_function"),
    ("granite_dense", {"layer_types": ["mamba", "attention", "hyena"]}, "layer_types"),
    ("granite_dense", {"layer_types": ["mamba"]}, "layer_types"),
    ("granite_dense", {"layer_types": [["mamba"]] * 3}, "layer_types"),
    ("granite_dense", {"model_type": ["granitemoehybrid"]}, "model_type"),
    ("granite_dense", {"shared_intermediate_size": 0}, "shared_intermediate_size is 0"),
    ("granite_dense", {"attention_multiplier": 0}, "attention_multiplier is 0"),
]


@pytest.mark.parametrize(("name", "settings", "expected"), REFUSED)
def test_a_setting_that_is_not_computed_is_refused(
    name: str, settings: dict[str, Any], expected: str
) -> None:
    path = Path("folder/config.json")
    read_config(WRITTEN[name], path, None)
    with pytest.raises(UserError, match=expected) as error:
        read_config(WRITTEN[name] | settings, path, None)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("infinity", [float("inf"), {"__float__": "Infinity"}, 3.5e38])
def test_no_upper_limit_in_all_its_spellings(infinity: Any) -> None:
    values = WRITTEN["mamba2"] | {"time_step_limit": [0.0, infinity]}
    assert read_config(values, Path("config.json"), None).mamba2.max_time_step is None


def test_buffers_of_old_saves_are_passed_over(tmp_path: Path) -> None:
    values = WRITTEN["gpt_neox"]
    decoder = Decoder(read_config(values, tmp_path, None), values["vocab_size"])
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), decoder.shapes())
    layout = FAMILIES["gpt_neox"].layouts[0]
    tensors = {name: t.stored(params) for name, t in checkpoint_tensors(decoder, layout).items()}
    place = "gpt_neox.layers.0.attention."
    tensors[f"{place}bias"] = np.ones((1, 1, 4, 4), bool)
    tensors[f"{place}masked_bias"] = np.array(-1e9, np.float32)
    tensors[f"{place}rotary_emb.inv_freq"] = np.ones(2, np.float32)
    write_json(tmp_path / "config.json", values)
    save_file(tensors, tmp_path / "model.safetensors")
    import_checkpoint(tmp_path)
