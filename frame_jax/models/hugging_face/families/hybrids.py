"""Hybrids of Mamba-2 and attention: Bamba, and GraniteMoeHybrid (Granite 4)."""

from __future__ import annotations

from typing import Any

from frame_jax.config.models import ModelConfig
from frame_jax.models.hugging_face.families.experts import read_experts
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
    write_shape,
)
from frame_jax.models.hugging_face.families.mamba2 import (
    HYBRID,
    mamba2_rules,
    read_mamba2,
    write_mamba2,
)
from frame_jax.models.hugging_face.settings import HFSettings
from frame_jax.models.hugging_face.tensors import Layout, Rule, single_rules

MAMBA_NORM = single_rules({"input_layernorm.weight": "mamba_norm"})
BAMBA_NORMS = single_rules(
    {"input_layernorm.weight": "attention_norm", "pre_ff_layernorm.weight": "mlp_norm"}
)
BAMBA_ROTATED = 0.5  # fixed in transformers, whatever `partial_rotary_factor` a version writes
WRITTEN = {"mamba2": "mamba", "attention": "attention"}  # which all versions read
MIXERS = {
    "mamba": "mamba2",
    "attention": "attention",
    "linear_attention": "mamba2",  # transformers 5
    "full_attention": "attention",
}
MULTIPLIERS = {
    "embedding_multiplier": "embedding_multiplier",
    "residual_multiplier": "residual_multiplier",
    "logits_scaling": "logits_divisor",
}
SHARED_IN, SHARED_OUT = "shared_mlp.input_linear.weight", "shared_mlp.output_linear.weight"
GRANITE = (
    *NORMS,
    *MAMBA_NORM,
    *ATTENTION,
    *mamba2_rules("mamba"),
    # The dense layer of a model without experts, or the shared expert, which is there even if its
    # width is 0: the last of these rules that applies is taken.
    Rule(SHARED_IN, ("expert_gate",), lambda c, values: values[0, :, :0].T),
    Rule(SHARED_OUT, ("expert_down",), lambda c, values: values[0, :0].T),
    Rule(SHARED_IN, ("shared_gate", "shared_up")),
    Rule(SHARED_OUT, ("shared_down",)),
    Rule(SHARED_IN, ("gate", "up")),
    Rule(SHARED_OUT, ("down",)),
)
STORED = fused_expert_rules(
    "block_sparse_moe.router.layer.weight",
    "block_sparse_moe.input_linear.weight",
    "block_sparse_moe.output_linear.weight",
)
AS_IN_MEMORY = fused_expert_rules(
    "block_sparse_moe.router.weight",
    "block_sparse_moe.experts.gate_up_proj",
    "block_sparse_moe.experts.down_proj",
)


def read_bamba(s: HFSettings) -> Fields:
    """Reads Bamba: dense feed-forwards; half a head is rotated."""
    shape = read_shape(s, "intermediate_size", "num_key_value_heads")
    s.require_value(mamba_proj_bias=False)
    if s.partial_rotary_factor(BAMBA_ROTATED) != BAMBA_ROTATED:
        raise s.error(f"partial_rotary_factor other than {BAMBA_ROTATED} is not supported in Bamba")
    attention = s.list_of("attn_layer_indices")
    mixers = ["attention" if i in attention else "mamba2" for i in range(shape["num_layers"])]
    return (
        shape
        | {
            "intermediate_size": s.size("intermediate_size"),
            "layers": layer_pattern([f"{mixer}+dense" for mixer in mixers]),
            "partial_rotary_factor": BAMBA_ROTATED,
        }
        | ({"mamba2": read_mamba2(s, HYBRID)} if "mamba2" in mixers else {})
    )


def write_bamba(c: ModelConfig) -> dict[str, Any]:
    """The settings of config.json."""
    attention = [i for i, name in enumerate(layer_names(c)) if name.startswith("attention")]
    return (
        write_shape(c)
        | write_mamba2(c, HYBRID)
        | {
            "intermediate_size": c.intermediate_size,
            "attn_layer_indices": attention,
            "partial_rotary_factor": BAMBA_ROTATED,
            "mamba_proj_bias": False,
            "mlp_bias": False,
        }
    )


def read_granite(s: HFSettings) -> Fields:
    """Reads Granite 4: feed-forwards all dense, or all experts beside a shared one; multipliers."""
    require_whole_rotation(s)
    shape = read_shape(s, "shared_intermediate_size", "num_local_experts")
    s.require_value(mamba_proj_bias=False, normalization_function="rmsnorm")
    positions = s.values.get("position_embedding_type")
    if positions not in (None, "nope", "rope"):
        raise s.error(f"position_embedding_type {positions!r} is not supported")
    types = s.list_of("layer_types") or ["mamba"] * shape["num_layers"]
    unknown = [name for name in types if name not in list(MIXERS)]
    if unknown or len(types) != shape["num_layers"]:
        raise s.error(f"layer_types must be num_hidden_layers names, each of {', '.join(MIXERS)}")
    mixers = [MIXERS[name] for name in types]
    kind = "experts" if s.size("num_local_experts", least=0) else "dense"
    head_dim = shape["head_dim"] or shape["hidden_size"] // shape["num_heads"]
    scale = s.number("attention_multiplier", 1.0)
    return (
        shape
        | {ours: s.number(theirs, 1.0) for theirs, ours in MULTIPLIERS.items()}
        | {
            "layers": layer_pattern([f"{mixer}+{kind}" for mixer in mixers]),
            "attention_multiplier": None if scale == head_dim**-0.5 else scale,
            "partial_rotary_factor": 1.0 if positions == "rope" else 0.0,
        }
        | read_granite_feed_forward(s)
        | ({"mamba2": read_mamba2(s, HYBRID)} if "mamba2" in mixers else {})
    )


def read_granite_feed_forward(s: HFSettings) -> Fields:
    """Reads the dense layer, or the experts if there are any."""
    if not s.size("num_local_experts", least=0):
        return {"intermediate_size": s.size("shared_intermediate_size")}
    s.require("num_experts_per_tok", "intermediate_size")
    experts = read_experts(
        s,
        "num_local_experts",
        shared_expert_intermediate_size=s.size("shared_intermediate_size", least=0),
        norm_topk_prob=True,  # the softmax over the chosen logits is the renormalised one over all
    )
    return {"experts": experts}


def write_granite(c: ModelConfig) -> dict[str, Any]:
    """The settings of config.json."""
    experts = c.experts if c.has("experts") else None
    scale = c.attention_multiplier
    return (
        write_shape(c)
        | write_mamba2(c, HYBRID)
        | {theirs: getattr(c, ours) for theirs, ours in MULTIPLIERS.items()}
        | {
            "attention_multiplier": c.resolved_head_dim**-0.5 if scale is None else scale,
            "intermediate_size": experts.intermediate_size if experts else c.intermediate_size,
            "shared_intermediate_size": experts.shared_expert_intermediate_size
            if experts
            else c.intermediate_size,
            "num_local_experts": experts.num_experts if experts else 0,
            "num_experts_per_tok": experts.num_experts_per_token if experts else 0,
            "layer_types": [WRITTEN[name.split("+")[0]] for name in layer_names(c)],
            "position_embedding_type": "rope" if c.partial_rotary_factor else "nope",
            "mamba_proj_bias": False,
        }
    )


FAMILIES = (
    Family(
        "bamba",
        "BambaForCausalLM",
        ("attention+dense", "mamba2+dense"),
        read_bamba,
        write_bamba,
        (
            Layout(
                OUTER | {"final_norm": "model.final_layernorm.weight"},
                PREFIX,
                (
                    *BAMBA_NORMS,
                    *MAMBA_NORM,
                    *ATTENTION,
                    *mamba2_rules("mamba"),
                    *dense_rules("feed_forward"),
                ),
            ),
        ),
    ),
    Family(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        ("attention+dense", "attention+experts", "mamba2+dense", "mamba2+experts"),
        read_granite,
        write_granite,
        (Layout(OUTER, PREFIX, GRANITE + STORED), Layout(OUTER, PREFIX, GRANITE + AS_IN_MEMORY)),
    ),
)
