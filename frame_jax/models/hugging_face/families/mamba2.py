"""Mamba-2 by itself, and its hybrids with attention: Bamba, GraniteMoeHybrid (Granite 4)."""

import math
from typing import Any

import ml_dtypes

from frame_jax.config.models import ExpertsConfig, Mamba2Config, ModelConfig, layer_pattern
from frame_jax.errors import UserError
from frame_jax.models.hugging_face.families import family
from frame_jax.models.hugging_face.settings import HFSettings
from frame_jax.models.hugging_face.tensors import (
    Layout,
    Rule,
    as_is,
    conv_kernel_view,
    single_rules,
)

# Stands for no limit, which JSON cannot say: the largest number that bfloat16 can, too.
NO_LIMIT = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)

MAMBA2_OUTER = {
    "embedding": "backbone.embeddings.weight",
    "final_norm": "backbone.norm_f.weight",
    "output": "lm_head.weight",
}
# Settings of a Mamba-2 mixer: ours -> theirs, as hybrids spell them, and as Mamba-2 itself does.
HYBRID = {
    "num_heads": "mamba_n_heads",
    "head_dim": "mamba_d_head",
    "state_size": "mamba_d_state",
    "groups": "mamba_n_groups",
    "conv_kernel": "mamba_d_conv",
    "chunk_size": "mamba_chunk_size",
    "conv_bias": "mamba_conv_bias",
    "expand": "mamba_expand",
}
ALONE = {name: name for name in HYBRID} | {"groups": "n_groups", "conv_bias": "use_conv_bias"}
MIXER_SIZES = ("num_heads", "state_size", "groups", "conv_kernel", "chunk_size")


def mamba2_rules(prefix: str) -> tuple[Rule, ...]:
    """The tensors of a Mamba-2 mixer."""
    parts = ("x", "b", "c")
    own = {
        "dt_bias": "dt_bias",
        "A_log": "a_log",
        "D": "skip",
        "norm.weight": "gate_norm",
        "out_proj.weight": "mamba_out",
    }
    return (
        Rule(f"{prefix}.in_proj.weight", ("in_z", "in_x", "in_b", "in_c", "in_dt")),
        Rule(f"{prefix}.conv1d.weight", tuple(f"conv_{part}" for part in parts), conv_kernel_view),
        Rule(f"{prefix}.conv1d.bias", tuple(f"conv_{part}_bias" for part in parts), as_is),
        *single_rules({f"{prefix}.{name}": ours for name, ours in own.items()}),
    )


def read_mamba2(s: HFSettings, spelling: dict[str, str]) -> Mamba2Config:
    """Reads the shape of a Mamba-2 mixer."""
    s.require(*(spelling[key] for key in (*MIXER_SIZES, "expand")))
    sizes = {key: s.size(spelling[key]) for key in MIXER_SIZES}
    heads, width = sizes["num_heads"], s.size(spelling["expand"]) * s.size("hidden_size")
    key = spelling["head_dim"]
    head_dim = width // heads if s.values.get(key) in (None, "auto") else s.size(key)
    if heads * head_dim != width:
        raise s.error(
            f"{spelling['num_heads']} * {key} is {heads * head_dim}, must be {spelling['expand']} "
            f"* hidden_size, {width}"
        )
    low, high = read_time_step_limits(s)
    bias = s.flag(spelling["conv_bias"], True)
    return Mamba2Config(
        **sizes, head_dim=head_dim, conv_bias=bias, min_time_step=low, max_time_step=high
    )


def read_time_step_limits(s: HFSettings) -> tuple[float, float | None]:
    """Reads the limits of the step size, [low, high]. Python writes infinity as a number,
    transformers 5 as an object."""
    limits = s.list_of("time_step_limit") or [0.0, NO_LIMIT]
    found = [math.inf if x == {"__float__": "Infinity"} else x for x in limits]
    if len(found) != 2 or any(type(x) not in (int, float) for x in found):
        raise s.error(f"time_step_limit is {limits!r}, must be two numbers")
    low, high = found
    return float(low), None if high >= NO_LIMIT else float(high)


def write_mamba2(c: ModelConfig, spelling: dict[str, str]) -> dict[str, Any]:
    """The inverse of `read_mamba2`.

    Raises:
        UserError: if the width is no multiple of `hidden_size`.
    """
    m = c.mamba2 if c.has("mamba2") else Mamba2Config(num_heads=1, head_dim=c.hidden_size)
    if m.inner_dim % c.hidden_size:
        raise UserError(
            "transformers has Mamba-2 mixers only of a multiple of the width of the model, so this "
            "one cannot be exported: model.mamba2.num_heads * model.mamba2.head_dim is "
            f"{m.inner_dim}, model.hidden_size {c.hidden_size}"
        )
    values = {key: getattr(m, key) for key in (*MIXER_SIZES, "head_dim", "conv_bias")}
    values["expand"] = m.inner_dim // c.hidden_size
    written = {spelling[key]: value for key, value in values.items()}
    return written | {"time_step_limit": [m.min_time_step, m.max_time_step or NO_LIMIT]}


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
SHARED_IN, SHARED_OUT = "shared_mlp.input_linear.weight", "shared_mlp.output_linear.weight"
MIXER_RULES = (
    *single_rules({"input_layernorm.weight": "mamba_norm"}),
    *family.ATTENTION,
    *mamba2_rules("mamba"),
)
GRANITE = (
    *family.NORMS,
    *MIXER_RULES,
    # The dense layer of a model without experts, or the shared expert, which is there even if its
    # width is 0: the last of these rules that applies is taken.
    Rule(SHARED_IN, ("expert_gate",), lambda c, values: values[0, :, :0].T),
    Rule(SHARED_OUT, ("expert_down",), lambda c, values: values[0, :0].T),
    Rule(SHARED_IN, ("shared_gate", "shared_up")),
    Rule(SHARED_OUT, ("shared_down",)),
    Rule(SHARED_IN, ("gate", "up")),
    Rule(SHARED_OUT, ("down",)),
)
STORED = family.fused_expert_rules(
    "block_sparse_moe.router.layer.weight",
    "block_sparse_moe.input_linear.weight",
    "block_sparse_moe.output_linear.weight",
)
AS_IN_MEMORY = family.fused_expert_rules(
    "block_sparse_moe.router.weight",
    "block_sparse_moe.experts.gate_up_proj",
    "block_sparse_moe.experts.down_proj",
)


def read_mixers(s: HFSettings, mixers: list[str], feed_forward: str) -> family.Fields:
    """The layers of a hybrid, and the shape of its Mamba-2 mixers if it has any."""
    fields: family.Fields = {
        "layers": layer_pattern([f"{mixer}+{feed_forward}" for mixer in mixers])
    }
    return fields | ({"mamba2": read_mamba2(s, HYBRID)} if "mamba2" in mixers else {})


def read_bamba(s: HFSettings, fields: family.Fields) -> family.Fields:
    """Reads which layers are attention."""
    attention = s.list_of("attn_layer_indices")
    mixers = ["attention" if i in attention else "mamba2" for i in range(fields["num_layers"])]
    return read_mixers(s, mixers, "dense")


def write_bamba(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_bamba`."""
    attention = [i for i, spec in enumerate(c.layer_specs) if spec.mixer == "attention"]
    return write_mamba2(c, HYBRID) | {
        "attn_layer_indices": attention,
        "partial_rotary_factor": BAMBA_ROTATED,
    }


def read_granite(s: HFSettings, fields: family.Fields) -> family.Fields:
    """Reads Granite 4: feed-forwards all dense, or all experts beside a shared one; multipliers."""
    s.require("shared_intermediate_size", "num_local_experts")
    s.require_value(normalization_function="rmsnorm")
    positions = s.values.get("position_embedding_type")
    if positions not in (None, "nope", "rope"):
        raise s.error(f"position_embedding_type {positions!r} is not supported")
    types = s.list_of("layer_types") or ["mamba"] * fields["num_layers"]
    unknown = [name for name in types if name not in list(MIXERS)]
    if unknown or len(types) != fields["num_layers"]:
        raise s.error(f"layer_types must be num_hidden_layers names, each of {', '.join(MIXERS)}")
    head_dim = fields["head_dim"] or fields["hidden_size"] // fields["num_heads"]
    scale = s.number("attention_multiplier", 1.0)
    found: family.Fields = {
        "attention_multiplier": None if scale == head_dim**-0.5 else scale,
        "partial_rotary_factor": 1.0 if positions == "rope" else 0.0,
    }
    mixers = [MIXERS[name] for name in types]
    if not s.size("num_local_experts", least=0):
        dense = {"intermediate_size": s.size("shared_intermediate_size")}
        return found | read_mixers(s, mixers, "dense") | dense
    s.require("num_experts_per_tok", "intermediate_size")
    experts = ExpertsConfig(
        s.size("num_local_experts"),
        s.size("num_experts_per_tok"),
        s.size("intermediate_size"),
        s.size("shared_intermediate_size", least=0),
        norm_topk_prob=True,  # the softmax over the chosen logits is the renormalised one over all
    )
    return found | read_mixers(s, mixers, "experts") | {"experts": experts}


def write_granite(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_granite`."""
    experts, scale = c.experts if c.has("experts") else None, c.attention_multiplier
    shared = experts.shared_expert_intermediate_size if experts else c.intermediate_size
    return write_mamba2(c, HYBRID) | {
        "attention_multiplier": c.resolved_head_dim**-0.5 if scale is None else scale,
        "intermediate_size": experts.intermediate_size if experts else c.intermediate_size,
        "shared_intermediate_size": shared,
        "num_local_experts": experts.num_experts if experts else 0,
        "num_experts_per_tok": experts.num_experts_per_token if experts else 0,
        "layer_types": [WRITTEN[spec.mixer] for spec in c.layer_specs],
        "position_embedding_type": "rope" if c.partial_rotary_factor else "nope",
    }


FAMILIES = (
    family.Family(
        "mamba2",
        "Mamba2ForCausalLM",
        ("mamba2+none",),
        (
            Layout(
                MAMBA2_OUTER,
                "backbone.layers.{layer}.",
                (*single_rules({"norm.weight": "mamba_norm"}), *mamba2_rules("mixer")),
            ),
        ),
        family.SHAPE | {"norm_eps": family.Setting("layer_norm_epsilon", "number")},
        {"hidden_act": "silu", "use_bias": False, "rms_norm": True},
        # Heads are of no attention.
        {"layers": ("mamba2+none",), "num_heads": 1, "num_kv_heads": 1, "head_dim": 2},
        rope=None,
        rotated=None,
        read=lambda s, fields: {"mamba2": read_mamba2(s, ALONE)},
        write=lambda c: write_mamba2(c, ALONE) | {"residual_in_fp32": True},
    ),
    family.Family(
        "bamba",
        "BambaForCausalLM",
        ("attention+dense", "mamba2+dense"),
        (
            Layout(
                family.OUTER | {"final_norm": "model.final_layernorm.weight"},
                family.PREFIX,
                (*BAMBA_NORMS, *MIXER_RULES, *family.dense_rules("feed_forward")),
            ),
        ),
        family.ATTENTION_SHAPE | family.GROUPED | family.DENSE,
        family.SILU | {"mamba_proj_bias": False, "mlp_bias": False},
        rotated=BAMBA_ROTATED,
        read=read_bamba,
        write=write_bamba,
    ),
    family.Family(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        ("attention+dense", "attention+experts", "mamba2+dense", "mamba2+experts"),
        (
            Layout(family.OUTER, family.PREFIX, GRANITE + STORED),
            Layout(family.OUTER, family.PREFIX, GRANITE + AS_IN_MEMORY),
        ),
        family.ATTENTION_SHAPE
        | {
            "embedding_multiplier": family.Setting("embedding_multiplier", "number", 1.0),
            "residual_multiplier": family.Setting("residual_multiplier", "number", 1.0),
            "logits_divisor": family.Setting("logits_scaling", "number", 1.0),
        },
        family.SILU | {"mamba_proj_bias": False},
        read=read_granite,
        write=write_granite,
    ),
)
