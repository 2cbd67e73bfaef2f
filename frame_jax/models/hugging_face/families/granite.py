"""GraniteMoeHybrid (Granite 4): Mamba-2 and attention layers, all dense or all with experts beside
a shared one; multipliers; rotary positions or none."""

from __future__ import annotations

from typing import Any

from frame_jax.config.models import ExpertsConfig, ModelConfig
from frame_jax.models.hugging_face.families.family import (
    ATTENTION,
    HYBRID,
    NORMS,
    OUTER,
    PREFIX,
    Family,
    Fields,
    fused_expert_rules,
    layer_names,
    layer_pattern,
    mamba2_rules,
    read_mamba2,
    read_shape,
    require_whole_rotation,
    write_mamba2,
    write_shape,
)
from frame_jax.models.hugging_face.settings import HFSettings
from frame_jax.models.hugging_face.tensors import Layout, Rule, single_rules

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
COMMON = (
    *NORMS,
    *single_rules({"input_layernorm.weight": "mamba_norm"}),
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


def from_hf_config(s: HFSettings) -> Fields:
    """Fields of ModelConfig."""
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
    experts = s.size("num_local_experts", least=0)
    kind = "experts" if experts else "dense"
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
        | read_feed_forward(s, experts)
        | ({"mamba2": read_mamba2(s, HYBRID)} if "mamba2" in mixers else {})
    )


def read_feed_forward(s: HFSettings, count: int) -> Fields:
    """The dense layer, or the experts if there are any."""
    if not count:
        return {"intermediate_size": s.size("shared_intermediate_size")}
    s.require("num_experts_per_tok", "intermediate_size")
    experts = ExpertsConfig(
        num_experts=count,
        num_experts_per_token=s.size("num_experts_per_tok"),
        intermediate_size=s.size("intermediate_size"),
        shared_expert_intermediate_size=s.size("shared_intermediate_size", least=0),
        norm_topk_prob=True,  # the softmax over the chosen logits is the renormalised one over all
    )
    return {"experts": experts}


def to_hf_config(c: ModelConfig) -> dict[str, Any]:
    """What config.json says."""
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


FAMILY = Family(
    "granitemoehybrid",
    "GraniteMoeHybridForCausalLM",
    ("attention+dense", "attention+experts", "mamba2+dense", "mamba2+experts"),
    from_hf_config,
    to_hf_config,
    (Layout(OUTER, PREFIX, COMMON + STORED), Layout(OUTER, PREFIX, COMMON + AS_IN_MEMORY)),
)
