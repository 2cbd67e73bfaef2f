"""Mamba-2: the mixer, which hybrids have too, and models of mixers alone."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes

from frame_jax.config.models import Mamba2Config, ModelConfig
from frame_jax.errors import UserError
from frame_jax.models.hugging_face.families.family import Family, Fields
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

OUTER = {
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


def from_hf_config(s: HFSettings) -> Fields:
    """Reads the fields of ModelConfig."""
    s.require("hidden_size", "num_hidden_layers", "layer_norm_epsilon")
    s.require_value(hidden_act="silu", use_bias=False, rms_norm=True)
    return {
        "hidden_size": s.size("hidden_size"),
        "num_layers": s.size("num_hidden_layers"),
        "num_heads": 1,  # of no attention
        "num_kv_heads": 1,
        "head_dim": 2,
        "norm_eps": s.number("layer_norm_epsilon"),
        "tie_embeddings": s.flag("tie_word_embeddings"),
        "layers": ("mamba2+none",),
        "mamba2": read_mamba2(s, ALONE),
    }


def to_hf_config(c: ModelConfig) -> dict[str, Any]:
    """The settings of config.json."""
    return write_mamba2(c, ALONE) | {
        "hidden_size": c.hidden_size,
        "num_hidden_layers": c.num_layers,
        "layer_norm_epsilon": c.norm_eps,
        "hidden_act": "silu",
        "use_bias": False,
        "rms_norm": True,
        "residual_in_fp32": True,
        "tie_word_embeddings": c.tie_embeddings,
    }


FAMILY = Family(
    "mamba2",
    "Mamba2ForCausalLM",
    ("mamba2+none",),
    from_hf_config,
    to_hf_config,
    (
        Layout(
            OUTER,
            "backbone.layers.{layer}.",
            (*single_rules({"norm.weight": "mamba_norm"}), *mamba2_rules("mixer")),
        ),
    ),
)
