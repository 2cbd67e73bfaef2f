"""OLMo 2: norms after the sublayers, queries and keys normed over the whole projection."""

from __future__ import annotations

from frame_jax.models.hugging_face.families import llama
from frame_jax.models.hugging_face.families.family import (
    ATTENTION,
    OUTER,
    PREFIX,
    Family,
    Fields,
    dense,
)
from frame_jax.models.hugging_face.settings import Settings
from frame_jax.models.hugging_face.tensors import Layout, single

NORMS = {
    "post_attention_layernorm.weight": "attention_norm",
    "post_feedforward_layernorm.weight": "mlp_norm",
}


def read(s: Settings) -> Fields:
    """Fields of ModelConfig."""
    return llama.read(s, qk_norm=True, qk_norm_over="projection", norm_position="after")


FAMILY = Family(
    "olmo2",
    "Olmo2ForCausalLM",
    ("attention+dense",),
    read,
    llama.write,
    (Layout(OUTER, PREFIX, (*single(NORMS), *ATTENTION, *dense())),),
)
