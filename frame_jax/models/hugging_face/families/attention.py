"""Families of attention alone: Llama and its kin, GPT-NeoX, mixtures of experts."""

from typing import Any

from frame_jax.config.models import ModelConfig, layer_pattern
from frame_jax.models.hugging_face.families import family
from frame_jax.models.hugging_face.settings import HFSettings
from frame_jax.models.hugging_face.tensors import Layout, Rule, by_head, single_rules


def llama_layouts(*ways: tuple[Rule, ...]) -> tuple[Layout, ...]:
    """Llama's tensors, with the feed-forward stored in each of these ways."""
    return tuple(
        Layout(family.OUTER, family.PREFIX, (*family.NORMS, *family.ATTENTION, *rules))
        for rules in ways
    )


(LLAMA_LAYOUT,) = llama_layouts(family.dense_rules())
OLMO2_NORMS = single_rules(  # after the sublayers
    {
        "post_attention_layernorm.weight": "attention_norm",
        "post_feedforward_layernorm.weight": "mlp_norm",
    }
)
OLMO2_LAYOUT = LLAMA_LAYOUT._replace(rules=(*OLMO2_NORMS, *family.ATTENTION, *family.dense_rules()))
LLAMA_SHAPE = family.ATTENTION_SHAPE | family.DENSE


def llama_family(
    name: str,
    layout: Layout = LLAMA_LAYOUT,
    required: family.Settings | None = None,
    **constants: Any,
) -> family.Family:
    """A family that differs from Llama by keys that must be there, and by constants."""
    return family.Family(
        name,
        f"{name.capitalize()}ForCausalLM",
        ("attention+dense",),
        (layout,),
        LLAMA_SHAPE | (required or {}),
        family.SILU,
        constants,
    )


LLAMAS = (
    # Without `head_dim` where `transformers` refuses a Llama: Mistral computes the same.
    llama_family("llama")._replace(
        write=lambda c: {"head_dim": None} if c.hidden_size % c.num_heads else {}
    ),
    llama_family("mistral", required=family.GROUPED),
    llama_family("qwen2", required=family.GROUPED, qkv_bias=True),
    # The only one of them whose heads are not hidden_size / num_heads by default.
    llama_family(
        "qwen3", required=family.GROUPED | {"head_dim": family.Setting("head_dim")}, qk_norm=True
    ),
    llama_family(
        "olmo2", OLMO2_LAYOUT, qk_norm=True, qk_norm_over="projection", norm_position="after"
    ),
)

NEOX_OUTER = {
    "embedding": "gpt_neox.embed_in.weight",
    "final_norm": "gpt_neox.final_layer_norm.weight",
    "final_norm_bias": "gpt_neox.final_layer_norm.bias",
}
NEOX_PARTS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "mlp_norm",
    "attention.dense": "attention_out",
    "mlp.dense_h_to_4h": "up",
    "mlp.dense_4h_to_h": "down",
}
NEOX_RULES = tuple(
    rule
    for kind, suffix in (("weight", ""), ("bias", "_bias"))
    for rule in (
        # Queries, keys and values are one tensor, head by head.
        Rule(
            f"attention.query_key_value.{kind}",
            tuple(f"{name}{suffix}" for name in ("query", "key", "value")),
            by_head,
            axis=1,
            merged=2,
        ),
        *single_rules(
            {f"{theirs}.{kind}": f"{ours}{suffix}" for theirs, ours in NEOX_PARTS.items()}
        ),
    )
)
NEOX_BUFFERS = (".rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")  # of old saves


def read_neox(s: HFSettings, fields: family.Fields) -> family.Fields:
    """Reads the share of a head that is rotated, in either spelling."""
    share = s.positive(s.partial_rotary_factor(0.25, "rotary_pct"), "rotary_pct")
    return {"partial_rotary_factor": share, "num_kv_heads": fields["num_heads"]}


NEOX = family.Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    ("attention+dense",),
    tuple(
        Layout(
            NEOX_OUTER | {"output": output}, "gpt_neox.layers.{layer}.", NEOX_RULES, NEOX_BUFFERS
        )
        for output in ("embed_out.weight", "lm_head.weight")
    ),
    family.SHAPE
    | family.DENSE
    | {
        "num_heads": family.Setting("num_attention_heads"),
        "norm_eps": family.Setting("layer_norm_eps", "number"),
        "partial_rotary_factor": family.Setting("rotary_pct", "number", 0.25),
        "parallel_residual": family.Setting("use_parallel_residual", "flag", True),
    },
    {"hidden_act": "gelu", "attention_bias": True},
    {"norm": "layer", "activation": "gelu", "qkv_bias": True, "bias": True},
    rope=("rotary_emb_base", 10_000.0),
    rotated=None,
    read=read_neox,
)

SEPARATE = family.separate_expert_rules("mlp", "gate_proj", "up_proj", "down_proj")
FUSED = family.fused_expert_rules(
    "mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
)
RENORMALISED = {"experts.norm_topk_prob": family.Setting("norm_topk_prob", "flag", False)}


def read_qwen3_moe(s: HFSettings, fields: family.Fields) -> family.Fields:
    """Reads which layers have experts: every n-th, but those in mlp_only_layers."""
    step, without = s.size("decoder_sparse_step", 1), s.list_of("mlp_only_layers")
    sparse = [i not in without and (i + 1) % step == 0 for i in range(fields["num_layers"])]
    kinds = ["attention+experts" if yes else "attention+dense" for yes in sparse]
    return {"layers": layer_pattern(kinds)}


def write_qwen3_moe(c: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_qwen3_moe`."""
    return {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [
            i for i, spec in enumerate(c.layer_specs) if spec.feed_forward != "experts"
        ],
        "use_sliding_window": False,
    }


EXPERTS = (
    family.Family(
        "olmoe",
        "OlmoeForCausalLM",
        ("attention+experts",),
        llama_layouts(SEPARATE, FUSED),
        # Its norms are as wide as the model, and so are all heads together.
        {name: setting for name, setting in family.ATTENTION_SHAPE.items() if name != "head_dim"}
        | family.expert_settings("num_experts")
        | RENORMALISED,
        family.SILU | {"clip_qkv": None},
        {"layers": ("attention+experts",), "qk_norm": True, "qk_norm_over": "projection"},
    ),
    family.Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        ("attention+dense", "attention+experts"),
        llama_layouts((*family.dense_rules(), *SEPARATE), (*family.dense_rules(), *FUSED)),
        LLAMA_SHAPE
        | family.GROUPED
        | family.expert_settings("num_experts", "moe_intermediate_size", "num_local_experts")
        | RENORMALISED,
        family.SILU,
        {"qk_norm": True},
        read=read_qwen3_moe,
        write=write_qwen3_moe,
    ),
    family.Family(
        "mixtral",
        "MixtralForCausalLM",
        ("attention+experts",),
        llama_layouts(family.separate_expert_rules("block_sparse_moe", "w1", "w3", "w2"), FUSED),
        family.ATTENTION_SHAPE | family.GROUPED | family.expert_settings(),
        family.SILU,
        {"layers": ("attention+experts",), "experts.norm_topk_prob": True},
        rope=("rope_theta", 1e6),
        write=lambda c: {"sliding_window": None},
    ),
)
FAMILIES = (*LLAMAS, NEOX, *EXPERTS)
