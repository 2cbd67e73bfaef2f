"""Llama, and families that differ in little: Mistral, Qwen2, Qwen3, OLMo 2."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from frame_jax.config.models import ModelConfig
from frame_jax.models.hugging_face.families.family import (
    ATTENTION,
    NORMS,
    OUTER,
    PREFIX,
    Family,
    Fields,
    dense_rules,
    read_shape,
    require_whole_rotation,
    write_shape,
)
from frame_jax.models.hugging_face.settings import HFSettings
from frame_jax.models.hugging_face.tensors import Layout, single_rules

GROUPED = ("num_key_value_heads",)
LAYOUT = Layout(OUTER, PREFIX, (*NORMS, *ATTENTION, *dense_rules()))
# Norms after the sublayers.
OLMO2_NORMS = single_rules(
    {
        "post_attention_layernorm.weight": "attention_norm",
        "post_feedforward_layernorm.weight": "mlp_norm",
    }
)
OLMO2_LAYOUT = LAYOUT._replace(rules=(*OLMO2_NORMS, *ATTENTION, *dense_rules()))


def from_hf_config(s: HFSettings, sizes: Sequence[str] = (), **fields: Any) -> Fields:
    """Reads the fields of ModelConfig.

    Args:
        s: The config.json.
        sizes: Keys that must be there beside the usual ones.
        fields: Fields that differ from Llama's.
    """
    require_whole_rotation(s)
    shape = read_shape(s, "intermediate_size", *sizes)
    return shape | {"intermediate_size": s.size("intermediate_size")} | fields


def to_hf_config(c: ModelConfig) -> dict[str, Any]:
    """The settings of config.json, the same for all of these families."""
    return write_shape(c) | {"intermediate_size": c.intermediate_size}


def write_llama(c: ModelConfig) -> dict[str, Any]:
    """Without `head_dim` where `transformers` refuses a Llama: Mistral computes the same."""
    written = to_hf_config(c)
    if c.hidden_size % c.num_heads:
        del written["head_dim"]
    return written


def llama_family(name: str, layout: Layout = LAYOUT, **settings: Any) -> Family:
    """A family that is read as Llama is, with these arguments of `from_hf_config` beside."""
    return Family(
        name,
        f"{name.capitalize()}ForCausalLM",
        ("attention+dense",),
        functools.partial(from_hf_config, **settings),
        write_llama if name == "llama" else to_hf_config,
        (layout,),
    )


FAMILIES = (
    llama_family("llama"),
    llama_family("mistral", sizes=GROUPED),
    llama_family("qwen2", sizes=GROUPED, qkv_bias=True),
    # The only one of them whose heads are not hidden_size / num_heads by default.
    llama_family("qwen3", sizes=(*GROUPED, "head_dim"), qk_norm=True),
    llama_family(
        "olmo2", OLMO2_LAYOUT, qk_norm=True, qk_norm_over="projection", norm_position="after"
    ),
)
