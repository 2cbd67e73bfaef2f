"""What is known of a family of models of `transformers`, and what families have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import ml_dtypes

from frame_jax.config.models import LayerName, Mamba2Config, ModelConfig
from frame_jax.errors import UserError
from frame_jax.models.hugging_face.settings import HFSettings, write_rope
from frame_jax.models.hugging_face.tensors import (
    Layout,
    Rule,
    as_is,
    conv_kernel_view,
    single_rules,
)

# Stands for no limit, which JSON cannot say: the largest number that bfloat16 can, too.
NO_LIMIT = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)

Fields = dict[str, Any]  # of ModelConfig


class Family(NamedTuple):
    """A family of models.

    Attributes:
        model_type: Its name in config.json.
        architecture: Its class in `transformers`.
        layers: What its layers can be.
        from_hf_config: What config.json says of the shape.
        to_hf_config: What config.json says of a shape. A setting without a place there is left out:
            reading it again gives another model, which is how one notices.
        layouts: The ways in which its tensors are stored; the first is written, all are read.
    """

    model_type: str
    architecture: str
    layers: tuple[LayerName, ...]
    from_hf_config: Callable[[HFSettings], Fields]
    to_hf_config: Callable[[ModelConfig], dict[str, Any]]
    layouts: tuple[Layout, ...]


OUTER = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "output": "lm_head.weight",
}
PREFIX = "model.layers.{layer}."
ATTENTION = single_rules(
    {
        "self_attn.q_proj.weight": "query",
        "self_attn.k_proj.weight": "key",
        "self_attn.v_proj.weight": "value",
        "self_attn.q_proj.bias": "query_bias",
        "self_attn.k_proj.bias": "key_bias",
        "self_attn.v_proj.bias": "value_bias",
        "self_attn.q_norm.weight": "query_norm",
        "self_attn.k_norm.weight": "key_norm",
        "self_attn.o_proj.weight": "attention_out",
    }
)
NORMS = single_rules(
    {"input_layernorm.weight": "attention_norm", "post_attention_layernorm.weight": "mlp_norm"}
)


def dense_rules(prefix: str = "mlp") -> tuple[Rule, ...]:
    """The tensors of a dense SwiGLU layer."""
    names = ("gate", "up", "down")
    return single_rules({f"{prefix}.{name}_proj.weight": name for name in names})


def separate_expert_rules(prefix: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """The tensors of a mixture of experts, each expert by itself."""
    names = {gate: "expert_gate", up: "expert_up", down: "expert_down"}
    experts = {f"{prefix}.experts.{{expert}}.{name}.weight": ours for name, ours in names.items()}
    return single_rules({f"{prefix}.gate.weight": "router"} | experts)


def fused_expert_rules(router: str, gate_up: str, down: str) -> tuple[Rule, ...]:
    """The tensors of a mixture of experts, all in one, gate and up one after the other."""
    both = Rule(gate_up, ("expert_gate", "expert_up"), axis=1)
    return (*single_rules({router: "router", down: "expert_down"}), both)


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


def read_shape(s: HFSettings, *sizes: str, theta: float = 10_000.0) -> Fields:
    """What all models with attention and RMSNorm say; `sizes` must be there too."""
    always = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    s.require(*always, *sizes, "rms_norm_eps")
    s.require_value(hidden_act="silu", attention_bias=False, mlp_bias=False)
    rope_theta, rope_scaling = s.read_rope(theta)
    heads = s.size("num_attention_heads")
    return {
        "hidden_size": s.size("hidden_size"),
        "num_layers": s.size("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": s.size("num_key_value_heads", heads),
        "head_dim": s.optional("head_dim"),
        "rope_theta": rope_theta,
        "rope_scaling": rope_scaling,
        "norm_eps": s.number("rms_norm_eps"),
        "tie_embeddings": s.flag("tie_word_embeddings"),
    }


def write_shape(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_shape`."""
    return {
        "hidden_size": c.hidden_size,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.resolved_head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tie_embeddings,
    } | write_rope(c)


def require_whole_rotation(s: HFSettings) -> None:
    """Refuses a part of a head that is rotated."""
    if s.partial_rotary_factor() != 1:
        raise s.error("partial_rotary_factor is not supported: all of a head is rotated")


def layer_pattern(layers: Sequence[str]) -> tuple[LayerName, ...]:
    """The shortest beginning of these names of layers which, repeated, is all of them."""
    names = cast("tuple[LayerName, ...]", tuple(layers))
    lengths = range(1, len(names) + 1)
    whole = (n for n in lengths if len(names) % n == 0 and names[:n] * (len(names) // n) == names)
    return names[: next(whole)]


def layer_names(c: ModelConfig) -> tuple[LayerName, ...]:
    """What each layer is."""
    return c.layers * (c.num_layers // len(c.layers))


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
ALONE = {
    "num_heads": "num_heads",
    "head_dim": "head_dim",
    "state_size": "state_size",
    "groups": "n_groups",
    "conv_kernel": "conv_kernel",
    "chunk_size": "chunk_size",
    "conv_bias": "use_conv_bias",
    "expand": "expand",
}
MIXER_SIZES = ("num_heads", "state_size", "groups", "conv_kernel", "chunk_size")


def read_mamba2(s: HFSettings, spelling: dict[str, str]) -> Mamba2Config:
    """The shape of a Mamba-2 mixer."""
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
    """Limits of the step size: [low, high]. Infinity is a number to Python and an object to
    transformers 5."""
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
