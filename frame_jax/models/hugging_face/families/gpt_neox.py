"""GPT-NeoX (Pythia): LayerNorm, biases, a partial rotation, mixer and feed-forward side by side.

Its projection of queries, keys and values is one tensor, head by head.
"""

from __future__ import annotations

from typing import Any

from frame_jax.config.models import ModelConfig
from frame_jax.models.hugging_face.families.family import Family, Fields
from frame_jax.models.hugging_face.settings import HFSettings, write_rope
from frame_jax.models.hugging_face.tensors import Layout, Rule, by_head, single_rules

OUTER = {
    "embedding": "gpt_neox.embed_in.weight",
    "final_norm": "gpt_neox.final_layer_norm.weight",
    "final_norm_bias": "gpt_neox.final_layer_norm.bias",
}
PARTS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "mlp_norm",
    "attention.dense": "attention_out",
    "mlp.dense_h_to_4h": "up",
    "mlp.dense_4h_to_h": "down",
}
QKV = ("query", "key", "value")
RULES = (
    Rule("attention.query_key_value.weight", QKV, by_head, axis=1, merged=2),
    Rule(
        "attention.query_key_value.bias",
        tuple(f"{name}_bias" for name in QKV),
        by_head,
        axis=1,
        merged=2,
    ),
    *single_rules({f"{tensor}.weight": parameter for tensor, parameter in PARTS.items()}),
    *single_rules({f"{tensor}.bias": f"{parameter}_bias" for tensor, parameter in PARTS.items()}),
)
BUFFERS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")  # of old saves


def from_hf_config(s: HFSettings) -> Fields:
    """Reads the fields of ModelConfig."""
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    s.require(*sizes, "layer_norm_eps")
    s.require_value(hidden_act="gelu", attention_bias=True)
    theta, scaling = s.read_rope(spelling="rotary_emb_base")
    return {
        "hidden_size": s.size("hidden_size"),
        "intermediate_size": s.size("intermediate_size"),
        "num_layers": s.size("num_hidden_layers"),
        "num_heads": s.size("num_attention_heads"),
        "num_kv_heads": s.size("num_attention_heads"),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "partial_rotary_factor": s.positive(
            s.partial_rotary_factor(0.25, "rotary_pct"), "rotary_pct"
        ),
        "norm": "layer",
        "norm_eps": s.number("layer_norm_eps"),
        "parallel_residual": s.flag("use_parallel_residual", True),
        "activation": "gelu",
        "qkv_bias": True,
        "bias": True,
        "tie_embeddings": s.flag("tie_word_embeddings"),
    }


def to_hf_config(c: ModelConfig) -> dict[str, Any]:
    """The settings of config.json."""
    return {
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "rotary_pct": c.partial_rotary_factor,
        "rotary_emb_base": c.rope_theta,
        "rope_scaling": write_rope(c)["rope_scaling"],
        "layer_norm_eps": c.norm_eps,
        "use_parallel_residual": c.parallel_residual,
        "hidden_act": "gelu",
        "attention_bias": True,
        "tie_word_embeddings": c.tie_embeddings,
    }


FAMILY = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    ("attention+dense",),
    from_hf_config,
    to_hf_config,
    tuple(
        Layout(OUTER | {"output": output}, "gpt_neox.layers.{layer}.", RULES, BUFFERS)
        for output in ("embed_out.weight", "lm_head.weight")
    ),
)
