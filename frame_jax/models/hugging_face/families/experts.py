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
    dense_rules,
    fused_expert_rules,
    layer_names,
    layer_pattern,
    read_shape,
    require_whole_rotation,
    separate_expert_rules,
    write_shape,
)
from frame_jax.models.hugging_face.settings import HFSettings
from frame_jax.models.hugging_face.tensors import Layout, Rule

SEPARATE = separate_expert_rules("mlp", "gate_proj", "up_proj", "down_proj")
FUSED = fused_expert_rules("mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def expert_layouts(*ways: tuple[Rule, ...]) -> tuple[Layout, ...]:
    """Llama's tensors, with the experts stored in each of these ways."""
    return tuple(Layout(OUTER, PREFIX, (*NORMS, *ATTENTION, *rules)) for rules in ways)


def read_experts(
    s: HFSettings, count: str, width: str = "intermediate_size", **fields: Any
) -> ExpertsConfig:
    """Reads the shape of the experts: their number under `count`, their width under `width`."""
    return ExpertsConfig(
        num_experts=s.size(count),
        num_experts_per_token=s.size("num_experts_per_tok"),
        intermediate_size=s.size(width),
        **fields,
    )


def read_olmoe(s: HFSettings) -> Fields:
    """Reads OLMoE: experts in all layers, queries and keys normed over the whole projection."""
    require_whole_rotation(s)
    s.require_value(clip_qkv=None)
    shape = read_shape(s, "intermediate_size", "num_experts", "num_experts_per_tok")
    return shape | {
        "head_dim": None,  # its norms are as wide as the model
        "layers": ("attention+experts",),
        "experts": read_experts(s, "num_experts", norm_topk_prob=s.flag("norm_topk_prob")),
        "qk_norm": True,
        "qk_norm_over": "projection",
    }


def write_olmoe(c: ModelConfig) -> dict[str, Any]:
    """The settings of config.json."""
    written = write_shape(c) | {
        "intermediate_size": c.experts.intermediate_size,
        "num_experts": c.experts.num_experts,
        "num_experts_per_tok": c.experts.num_experts_per_token,
        "norm_topk_prob": c.experts.norm_topk_prob,
        "clip_qkv": None,
    }
    del written["head_dim"]
    return written


def read_qwen3_moe(s: HFSettings) -> Fields:
    """Reads Qwen3-MoE: experts in every n-th layer but those in mlp_only_layers; heads normed."""
    require_whole_rotation(s)
    count = "num_experts" if "num_experts" in s.values else "num_local_experts"
    sizes = ("num_key_value_heads", count, "num_experts_per_tok", "moe_intermediate_size")
    shape = read_shape(s, "intermediate_size", *sizes)
    renormalised = s.flag("norm_topk_prob")
    step, without = s.size("decoder_sparse_step", 1), s.list_of("mlp_only_layers")
    sparse = [
        layer not in without and (layer + 1) % step == 0 for layer in range(shape["num_layers"])
    ]
    return shape | {
        "intermediate_size": s.size("intermediate_size"),
        "layers": layer_pattern(
            ["attention+experts" if yes else "attention+dense" for yes in sparse]
        ),
        "experts": read_experts(s, count, "moe_intermediate_size", norm_topk_prob=renormalised),
        "qk_norm": True,
    }


def write_qwen3_moe(c: ModelConfig) -> dict[str, Any]:
    """The settings of config.json."""
    return write_shape(c) | {
        "intermediate_size": c.intermediate_size,
        "num_experts": c.experts.num_experts,
        "num_experts_per_tok": c.experts.num_experts_per_token,
        "moe_intermediate_size": c.experts.intermediate_size,
        "norm_topk_prob": c.experts.norm_topk_prob,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i, name in enumerate(layer_names(c)) if "experts" not in name],
        "use_sliding_window": False,
    }


def read_mixtral(s: HFSettings) -> Fields:
    """Reads Mixtral: experts in all layers, their weights always renormalised."""
    require_whole_rotation(s)
    sizes = ("num_key_value_heads", "num_local_experts", "num_experts_per_tok")
    shape = read_shape(s, "intermediate_size", *sizes, theta=1e6)
    experts = read_experts(s, "num_local_experts", norm_topk_prob=True)
    return shape | {"layers": ("attention+experts",), "experts": experts}


def write_mixtral(c: ModelConfig) -> dict[str, Any]:
    """The settings of config.json."""
    return write_shape(c) | {
        "intermediate_size": c.experts.intermediate_size,
        "num_local_experts": c.experts.num_experts,
        "num_experts_per_tok": c.experts.num_experts_per_token,
        "sliding_window": None,
    }


FAMILIES = (
    Family(
        "olmoe",
        "OlmoeForCausalLM",
        ("attention+experts",),
        read_olmoe,
        write_olmoe,
        expert_layouts(SEPARATE, FUSED),
    ),
    Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        ("attention+dense", "attention+experts"),
        read_qwen3_moe,
        write_qwen3_moe,
        expert_layouts((*dense_rules(), *SEPARATE), (*dense_rules(), *FUSED)),
    ),
    Family(
        "mixtral",
        "MixtralForCausalLM",
        ("attention+experts",),
        read_mixtral,
        write_mixtral,
        expert_layouts(separate_expert_rules("block_sparse_moe", "w1", "w3", "w2"), FUSED),
    ),
)
