"""Mixtures of experts with attention: OLMoE, Qwen3-MoE, Mixtral."""

from __future__ import annotations

from typing import Any

from frame_jax.config.models import ExpertsConfig, ModelConfig
from frame_jax.models.hugging_face.families.family import (
    ATTENTION,
    NORMS,
    OUTER,
    PREFIX,
    Family,
    Fields,
    dense,
    fused_experts,
    layer_names,
    pattern,
    read_shape,
    require_whole_rotation,
    separate_experts,
    write_shape,
)
from frame_jax.models.hugging_face.settings import Settings
from frame_jax.models.hugging_face.tensors import Layout, Rule

SEPARATE = separate_experts("mlp", "gate_proj", "up_proj", "down_proj")
FUSED = fused_experts("mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def layouts(*ways: tuple[Rule, ...]) -> tuple[Layout, ...]:
    """Llama's names with the experts in each of these ways."""
    return tuple(Layout(OUTER, PREFIX, (*NORMS, *ATTENTION, *rules)) for rules in ways)


def read_olmoe(s: Settings) -> Fields:
    """Experts in all layers, queries and keys normed over the whole projection."""
    require_whole_rotation(s)
    s.only(clip_qkv=None)
    shape = read_shape(s, "intermediate_size", "num_experts", "num_experts_per_tok")
    experts = ExpertsConfig(
        count=s.size("num_experts"),
        per_token=s.size("num_experts_per_tok"),
        intermediate_size=s.size("intermediate_size"),
        renormalise=s.flag("norm_topk_prob"),
    )
    return shape | {
        "head_dim": None,  # its norms are as wide as the model
        "layers": ("attention+experts",),
        "experts": experts,
        "qk_norm": True,
        "qk_norm_over": "projection",
    }


def write_olmoe(c: ModelConfig) -> dict[str, Any]:
    """What config.json says."""
    written = write_shape(c) | {
        "intermediate_size": c.experts.intermediate_size,
        "num_experts": c.experts.count,
        "num_experts_per_tok": c.experts.per_token,
        "norm_topk_prob": c.experts.renormalise,
        "clip_qkv": None,
    }
    del written["head_dim"]
    return written


def read_qwen3_moe(s: Settings) -> Fields:
    """Experts in every n-th layer but those that are named; heads normed."""
    require_whole_rotation(s)
    count = "num_experts" if "num_experts" in s.values else "num_local_experts"
    sizes = ("num_key_value_heads", count, "num_experts_per_tok", "moe_intermediate_size")
    shape = read_shape(s, "intermediate_size", *sizes)
    experts = ExpertsConfig(
        count=s.size(count),
        per_token=s.size("num_experts_per_tok"),
        intermediate_size=s.size("moe_intermediate_size"),
        renormalise=s.flag("norm_topk_prob"),
    )
    step, without = s.size("decoder_sparse_step", 1), s.listed("mlp_only_layers")
    sparse = [
        layer not in without and (layer + 1) % step == 0 for layer in range(shape["num_layers"])
    ]
    return shape | {
        "intermediate_size": s.size("intermediate_size"),
        "layers": pattern(["attention+experts" if yes else "attention+dense" for yes in sparse]),
        "experts": experts,
        "qk_norm": True,
    }


def write_qwen3_moe(c: ModelConfig) -> dict[str, Any]:
    """What config.json says."""
    return write_shape(c) | {
        "intermediate_size": c.intermediate_size,
        "num_experts": c.experts.count,
        "num_experts_per_tok": c.experts.per_token,
        "moe_intermediate_size": c.experts.intermediate_size,
        "norm_topk_prob": c.experts.renormalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i, name in enumerate(layer_names(c)) if "experts" not in name],
        "use_sliding_window": False,
    }


def read_mixtral(s: Settings) -> Fields:
    """Experts in all layers, their weights always renormalised."""
    require_whole_rotation(s)
    sizes = ("num_key_value_heads", "num_local_experts", "num_experts_per_tok")
    shape = read_shape(s, "intermediate_size", *sizes, theta=1e6)
    experts = ExpertsConfig(
        count=s.size("num_local_experts"),
        per_token=s.size("num_experts_per_tok"),
        intermediate_size=s.size("intermediate_size"),
        renormalise=True,
    )
    return shape | {"layers": ("attention+experts",), "experts": experts}


def write_mixtral(c: ModelConfig) -> dict[str, Any]:
    """What config.json says."""
    return write_shape(c) | {
        "intermediate_size": c.experts.intermediate_size,
        "num_local_experts": c.experts.count,
        "num_experts_per_tok": c.experts.per_token,
        "sliding_window": None,
    }


FAMILIES = (
    Family(
        "olmoe",
        "OlmoeForCausalLM",
        ("attention+experts",),
        read_olmoe,
        write_olmoe,
        layouts(SEPARATE, FUSED),
    ),
    Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        ("attention+dense", "attention+experts"),
        read_qwen3_moe,
        write_qwen3_moe,
        layouts((*dense(), *SEPARATE), (*dense(), *FUSED)),
    ),
    Family(
        "mixtral",
        "MixtralForCausalLM",
        ("attention+experts",),
        read_mixtral,
        write_mixtral,
        layouts(separate_experts("block_sparse_moe", "w1", "w3", "w2"), FUSED),
    ),
)
