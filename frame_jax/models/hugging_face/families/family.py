"""Describes a family of models of `transformers`; settings and tensors that families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from frame_jax.config.models import LayerName, ModelConfig
from frame_jax.models.hugging_face.settings import HFSettings, write_rope
from frame_jax.models.hugging_face.tensors import Layout, Rule, single_rules

Fields = dict[str, Any]  # of ModelConfig


class Family(NamedTuple):
    """A family of models.

    Attributes:
        model_type: Its name in config.json.
        architecture: Its class in `transformers`.
        layers: The kinds of layers it can have.
        from_hf_config: Reads the fields of ModelConfig from a config.json.
        to_hf_config: The settings of config.json for a shape. A setting that the family does not
            have is left out: reading it again gives another model, by which it is noticed.
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
    """The tensors of a mixture of experts, all experts in one, gate and up concatenated."""
    both = Rule(gate_up, ("expert_gate", "expert_up"), axis=1)
    return (*single_rules({router: "router", down: "expert_down"}), both)


def read_shape(s: HFSettings, *sizes: str, theta: float = 10_000.0) -> Fields:
    """Reads the fields of all models with attention and RMSNorm; `sizes` are required too."""
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
    """Refuses models that rotate a part of a head."""
    if s.partial_rotary_factor() != 1:
        raise s.error("partial_rotary_factor is not supported: all of a head is rotated")


def layer_pattern(layers: Sequence[str]) -> tuple[LayerName, ...]:
    """The shortest pattern of names which, repeated, makes all layers."""
    names = cast("tuple[LayerName, ...]", tuple(layers))
    lengths = range(1, len(names) + 1)
    whole = (n for n in lengths if len(names) % n == 0 and names[:n] * (len(names) // n) == names)
    return names[: next(whole)]


def layer_names(c: ModelConfig) -> tuple[LayerName, ...]:
    """The name of every layer, from the first on."""
    return c.layers * (c.num_layers // len(c.layers))
