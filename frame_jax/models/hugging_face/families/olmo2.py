"""OLMo 2: norms after the sublayers, queries and keys normed over the whole projection."""

from __future__ import annotations

from frame_jax.models.hugging_face.families import llama
from frame_jax.models.hugging_face.families.family import (
    ATTENTION,
    OUTER,
    PREFIX,
    Family,
    Fields,
    dense_rules,
)
from frame_jax.models.hugging_face.settings import HFSettings
from frame_jax.models.hugging_face.tensors import Layout, single_rules

NORMS = {
    "post_attention_layernorm.weight": "attention_norm",
    "post_feedforward_layernorm.weight": "mlp_norm",
}


def from_hf_config(s: HFSettings) -> Fields:
    """Fields of ModelConfig."""
    return llama.from_hf_config(s, qk_norm=True, qk_norm_over="projection", norm_position="after")


FAMILY = Family(
    "olmo2",
    "Olmo2ForCausalLM",
    ("attention+dense",),
    from_hf_config,
    llama.to_hf_config,
    (Layout(OUTER, PREFIX, (*single_rules(NORMS), *ATTENTION, *dense_rules())),),
)
