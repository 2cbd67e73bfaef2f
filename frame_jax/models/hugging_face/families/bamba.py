"""Bamba: Mamba-2 and attention layers, each with a dense feed-forward; half a head is rotated."""

from __future__ import annotations

from typing import Any

from frame_jax.config.models import ModelConfig
from frame_jax.models.hugging_face.families.family import (
    ATTENTION,
    HYBRID,
    OUTER,
    PREFIX,
    Family,
    Fields,
    dense_rules,
    layer_names,
    layer_pattern,
    mamba2_rules,
    read_mamba2,
    read_shape,
    write_mamba2,
    write_shape,
)
from frame_jax.models.hugging_face.settings import HFSettings
from frame_jax.models.hugging_face.tensors import Layout, single_rules

ROTATED = 0.5  # fixed in transformers, whatever `partial_rotary_factor` a version writes
NORMS = single_rules(
    {"input_layernorm.weight": "attention_norm", "pre_ff_layernorm.weight": "mlp_norm"}
) + single_rules({"input_layernorm.weight": "mamba_norm"})


def from_hf_config(s: HFSettings) -> Fields:
    """Fields of ModelConfig."""
    shape = read_shape(s, "intermediate_size", "num_key_value_heads")
    s.require_value(mamba_proj_bias=False)
    if s.partial_rotary_factor(ROTATED) != ROTATED:
        raise s.error(f"partial_rotary_factor other than {ROTATED} is not supported in Bamba")
    attention = s.list_of("attn_layer_indices")
    mixers = ["attention" if i in attention else "mamba2" for i in range(shape["num_layers"])]
    return (
        shape
        | {
            "intermediate_size": s.size("intermediate_size"),
            "layers": layer_pattern([f"{mixer}+dense" for mixer in mixers]),
            "partial_rotary_factor": ROTATED,
        }
        | ({"mamba2": read_mamba2(s, HYBRID)} if "mamba2" in mixers else {})
    )


def to_hf_config(c: ModelConfig) -> dict[str, Any]:
    """What config.json says."""
    attention = [i for i, name in enumerate(layer_names(c)) if name.startswith("attention")]
    return (
        write_shape(c)
        | write_mamba2(c, HYBRID)
        | {
            "intermediate_size": c.intermediate_size,
            "attn_layer_indices": attention,
            "partial_rotary_factor": ROTATED,
            "mamba_proj_bias": False,
            "mlp_bias": False,
        }
    )


FAMILY = Family(
    "bamba",
    "BambaForCausalLM",
    ("attention+dense", "mamba2+dense"),
    from_hf_config,
    to_hf_config,
    (
        Layout(
            OUTER | {"final_norm": "model.final_layernorm.weight"},
            PREFIX,
            (*NORMS, *ATTENTION, *mamba2_rules("mamba"), *dense_rules("feed_forward")),
        ),
    ),
)
