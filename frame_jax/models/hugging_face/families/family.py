"""Describes a family of models of `transformers`; settings and tensors that families share."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

from frame_jax.config.models import ExpertsConfig, LayerName, ModelConfig
from frame_jax.models.hugging_face.settings import HFSettings
from frame_jax.models.hugging_face.tensors import Layout, Rule, single_rules

Fields = dict[str, Any]  # of ModelConfig


class Setting(NamedTuple):
    """A key of config.json whose value is that of a field of ModelConfig.

    Attributes:
        kind: The method of `HFSettings` that reads it: size, number, flag or optional.
        default: What an absent key stands for; None where the key must be there. The name of a
            field stands for its value.
        newer_key: Its name in newer versions, where it has another.
    """

    key: str
    kind: str = "size"
    default: Any = None
    newer_key: str = ""


# By field; a dot leads into a part of ModelConfig.
Settings = dict[str, Setting]


class Family(NamedTuple):
    """A family of models.

    Attributes:
        model_type: Its name in config.json.
        architecture: Its class in `transformers`.
        layouts: The ways in which its tensors are stored; the first is written, all are read.
        settings: Keys of config.json that are fields of ModelConfig. A field that the family does
            not have is left out: reading what was written gives another model, by which it is
            noticed.
        fixed: Keys of config.json with the one value that is computed here.
        constants: Fields that all models of the family have.
        rope: The key of the base of the rotary frequencies, and the base where it is absent; None
            without rotation.
        rotated: The share of a head that is rotated in all models; None where that is a setting.
        read: Further fields, from the config.json and the fields that are read already.
        write: Further keys of config.json.
    """

    model_type: str
    architecture: str
    layers: tuple[LayerName, ...]
    layouts: tuple[Layout, ...]
    settings: Settings
    fixed: dict[str, Any]
    constants: Fields = {}  # noqa: RUF012  (is not changed)
    rope: tuple[str, float] | None = ("rope_theta", 10_000.0)
    rotated: float | None = 1.0
    read: Callable[[HFSettings, Fields], Fields] = lambda s, fields: {}
    write: Callable[[ModelConfig], dict[str, Any]] = lambda c: {}

    def from_hf_config(self, s: HFSettings) -> Fields:
        """Reads the fields of ModelConfig from a config.json."""
        fields = read_settings(s, self.settings) | self.constants
        s.require_value(**{"mlp_bias": False} | self.fixed)
        if self.rotated is not None:
            if s.partial_rotary_factor(self.rotated) != self.rotated:
                raise s.error(
                    f"partial_rotary_factor other than {self.rotated:g} is not supported in "
                    f"{self.model_type}"
                )
            fields["partial_rotary_factor"] = self.rotated
        if self.rope is not None:
            fields["rope_theta"], fields["rope_scaling"] = s.read_rope(*self.rope)
        names = [name for name in fields if name.startswith("experts.")]
        if names:
            parts = {name.removeprefix("experts."): fields.pop(name) for name in names}
            fields["experts"] = ExpertsConfig(**parts)
        return fields | self.read(s, fields)

    def to_hf_config(self, c: ModelConfig) -> dict[str, Any]:
        """The settings of config.json for a shape."""
        c = dataclasses.replace(c, head_dim=c.resolved_head_dim)
        written = {x.key: operator.attrgetter(name)(c) for name, x in self.settings.items()}
        written |= self.fixed
        if self.rope is not None:
            stretch = c.rope_scaling and {"rope_type": "llama3"} | dataclasses.asdict(
                c.rope_scaling
            )
            written |= {self.rope[0]: c.rope_theta, "rope_scaling": stretch}
        return written | self.write(c)


def read_settings(s: HFSettings, settings: Settings) -> Fields:
    """Reads the fields that a table names."""
    keys = {
        name: (x, x.newer_key if x.newer_key and x.key not in s.values else x.key)
        for name, x in settings.items()
    }
    needed = [k for x, k in keys.values() if x.default is None and x.kind != "optional"]
    s.require(*needed)
    fields: Fields = {}
    for name, (x, key) in keys.items():
        default = (fields.get(x.default, x.default),) if x.kind != "optional" else ()
        fields[name] = getattr(s, x.kind)(key, *default)
    return fields


SHAPE: Settings = {
    "hidden_size": Setting("hidden_size"),
    "num_layers": Setting("num_hidden_layers"),
    "tie_embeddings": Setting("tie_word_embeddings", "flag", False),
}
ATTENTION_SHAPE: Settings = {
    **SHAPE,
    "num_heads": Setting("num_attention_heads"),
    "num_kv_heads": Setting("num_key_value_heads", "size", "num_heads"),
    "head_dim": Setting("head_dim", "optional"),
    "norm_eps": Setting("rms_norm_eps", "number"),
}
DENSE: Settings = {"intermediate_size": Setting("intermediate_size")}
GROUPED: Settings = {"num_kv_heads": Setting("num_key_value_heads")}  # which must be there
SILU = {"hidden_act": "silu", "attention_bias": False}

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


def expert_settings(
    count: str = "num_local_experts", width: str = "intermediate_size", newer_count: str = ""
) -> Settings:
    """The shape of the experts: their number under `count`, their width under `width`."""
    return {
        "experts.num_experts": Setting(count, newer_key=newer_count),
        "experts.num_experts_per_token": Setting("num_experts_per_tok"),
        "experts.intermediate_size": Setting(width),
    }


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
