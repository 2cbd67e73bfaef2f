"""Mamba-2: mixers alone, no feed-forward layers."""

from __future__ import annotations

from typing import Any

from frame_jax.config.models import ModelConfig
from frame_jax.models.hugging_face.families.family import (
    ALONE,
    Family,
    Fields,
    mamba2_rules,
    read_mamba2,
    write_mamba2,
)
from frame_jax.models.hugging_face.settings import HFSettings
from frame_jax.models.hugging_face.tensors import Layout, single_rules

OUTER = {
    "embedding": "backbone.embeddings.weight",
    "final_norm": "backbone.norm_f.weight",
    "output": "lm_head.weight",
}


def from_hf_config(s: HFSettings) -> Fields:
    """Fields of ModelConfig."""
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
    """What config.json says."""
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
