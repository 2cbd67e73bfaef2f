"""Settings of a model's shape."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from frame_jax.config.base import check_bounds, number, require

Mixer = Literal["attention", "mamba2"]
FeedForward = Literal["dense", "experts", "none"]
LayerName = Literal[
    "attention+dense",
    "attention+experts",
    "attention+none",
    "mamba2+dense",
    "mamba2+experts",
    "mamba2+none",
]
DENSE: tuple[LayerName, ...] = ("attention+dense",)


class LayerSpec(NamedTuple):
    """The mixer and the feed-forward of a layer."""

    mixer: Mixer
    feed_forward: FeedForward


class LayerGroup(NamedTuple):
    """A group of equal layers, one after the other.

    Attributes:
        name: The key of their parameters under `layers`.
        spec: What they are.
        length: How many there are in one repeat of the pattern.
    """

    name: str
    spec: LayerSpec
    length: int


def layer_pattern(layers: Sequence[Any]) -> tuple[Any, ...]:
    """The shortest pattern of names or specs which, repeated, makes all layers."""
    every = tuple(layers)
    lengths = range(1, len(every) + 1)
    whole = (n for n in lengths if len(every) % n == 0 and every[:n] * (len(every) // n) == every)
    return every[: next(whole)]


@dataclass(frozen=True)
class RopeScalingConfig:
    """Stretched rotary frequencies, as in Llama 3.1: slow ones are divided by `factor`.

    Attributes:
        factor: Divisor of the slow frequencies.
        low_freq_factor: Frequencies with fewer turns than this in
            `original_max_position_embeddings` are divided.
        high_freq_factor: Frequencies with more turns are kept; between the two they are blended.
        original_max_position_embeddings: Tokens of context before the stretch.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        require(
            self.factor > 0
            and 0 < self.low_freq_factor < self.high_freq_factor
            and self.original_max_position_embeddings >= 1,
            "model.rope_scaling: factor and original_max_position_embeddings must be positive, "
            "and low_freq_factor below high_freq_factor",
        )


@dataclass(frozen=True)
class ExpertsConfig:
    """A mixture-of-experts feed-forward: a router sends each token to a few experts.

    No token is dropped: what a document's tokens become does not depend on its neighbours.

    Attributes:
        num_experts: Experts.
        num_experts_per_token: Experts that a token goes through.
        intermediate_size: Width of one expert, a SwiGLU layer.
        shared_expert_intermediate_size: Width of a SwiGLU layer that every token goes through
            beside them; 0 for none.
        scores: What the router's logits become: `softmax` over all experts, or `sigmoid` of each.
        norm_topk_prob: Whether the chosen scores are divided by their sum.
        routed_scaling_factor: Factor on them after that.
        router_bias: Whether a bias, for the choice alone, evens out the load (see
            `training.router_bias_update_rate`); DeepSeek-V3's loss-free balancing.
    """

    num_experts: int = number(8, least=1)
    num_experts_per_token: int = number(2, least=1)
    intermediate_size: int = number(352, least=1)
    shared_expert_intermediate_size: int = number(0, least=0)
    scores: Literal["softmax", "sigmoid"] = "softmax"
    norm_topk_prob: bool = False
    routed_scaling_factor: float = number(1.0, above=0)
    router_bias: bool = False

    def __post_init__(self) -> None:
        check_bounds(self, "model.experts.")
        require(
            self.num_experts_per_token <= self.num_experts,
            f"model.experts.num_experts_per_token ({self.num_experts_per_token}) must not exceed "
            f"model.experts.num_experts ({self.num_experts})",
        )


@dataclass(frozen=True)
class Mamba2Config:
    """A Mamba-2 mixer (Dao and Gu 2024, arXiv 2405.21060).

    Attributes:
        num_heads: Heads of the state-space layer.
        head_dim: Width of a head.
        state_size: Numbers of state for each number of a head.
        groups: Groups of heads that share their input and output maps (B and C); divides
            `num_heads`.
        conv_kernel: Tokens that the causal convolution before it sees.
        conv_bias: Whether that convolution has a bias.
        chunk_size: Tokens that are mixed in one piece; changes speed and memory, no result.
        min_time_step: Lower limit of the step size (dt), after the softplus.
        max_time_step: Upper limit; null for none.
    """

    num_heads: int = number(8, least=1)
    head_dim: int = number(64, least=1)
    state_size: int = number(64, least=1)
    groups: int = number(1, least=1)
    conv_kernel: int = number(4, least=1)
    conv_bias: bool = True
    chunk_size: int = number(64, least=1)
    min_time_step: float = 0.0
    max_time_step: float | None = None

    def __post_init__(self) -> None:
        check_bounds(self, "model.mamba2.")
        require(
            self.num_heads % self.groups == 0,
            f"model.mamba2.num_heads ({self.num_heads}) must be a multiple of model.mamba2.groups "
            f"({self.groups})",
        )
        require(
            0 <= self.min_time_step < (self.max_time_step or float("inf")),
            "model.mamba2: min_time_step must lie between 0 and max_time_step",
        )

    @property
    def inner_dim(self) -> int:
        """Width of all heads."""
        return self.num_heads * self.head_dim


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder. The vocabulary comes from the tokenizer.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the dense feed-forward layer.
        num_layers: Decoder layers.
        num_heads: Query heads.
        num_kv_heads: Key and value heads (grouped-query attention); divides `num_heads`.
        head_dim: Width of a head; null means hidden_size / num_heads. Even (rotary pairs).
        rope_theta: Base of the rotary frequencies.
        rope_scaling: Stretch of the rotary frequencies; null leaves them.
        norm_eps: Added to the mean square inside RMSNorm, to the variance inside LayerNorm.
        qkv_bias: Whether queries, keys and values have a bias (Qwen2).
        qk_norm: Whether queries and keys are normed before rotation (Qwen3, OLMo 2).
        tie_embeddings: Whether the output projection is the transposed embedding.
        layers: What the layers are, from the first on: a mixer and a feed-forward, such as
            `attention+dense` or `mamba2+none`. A shorter list is repeated up to `num_layers`.
        experts: The mixture of experts in layers that have one.
        mamba2: The mixer of Mamba-2 layers.
        qk_norm_over: What `qk_norm` norms: each `head` (Qwen3), or the whole `projection` before
            it is cut into heads (OLMo 2, OLMoE).
        partial_rotary_factor: Share of a head that is rotated, from its first numbers on; 0 leaves
            attention without positions.
        norm: `rms`, or `layer` for LayerNorm with bias (GPT-NeoX).
        norm_position: Whether a sublayer's input is normed (`before`) or its output (`after`,
            OLMo 2).
        parallel_residual: Whether mixer and feed-forward read the same input (GPT-NeoX).
        activation: Of the dense feed-forward: `swiglu`, or `gelu` without a gate (GPT-NeoX).
        bias: Whether the attention's output projection and the dense feed-forward have biases.
        embedding_multiplier: Factor on the embedding (Granite).
        residual_multiplier: Factor on what a sublayer adds to the residual stream (Granite).
        attention_multiplier: Factor on attention scores; null means 1 / sqrt(head_dim).
        logits_divisor: What logits are divided by (Granite).
    """

    hidden_size: int = number(256, least=1)
    intermediate_size: int = number(704, least=1)
    num_layers: int = number(4, least=1)
    num_heads: int = number(4, least=1)
    num_kv_heads: int = number(2, least=1)
    head_dim: int | None = None
    rope_theta: float = number(10_000.0, above=0)
    rope_scaling: RopeScalingConfig | None = None
    norm_eps: float = number(1e-5, above=0)
    qkv_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = True
    layers: tuple[LayerName, ...] = DENSE
    experts: ExpertsConfig = ExpertsConfig()
    mamba2: Mamba2Config = Mamba2Config()
    qk_norm_over: Literal["head", "projection"] = "head"
    partial_rotary_factor: float = 1.0
    norm: Literal["rms", "layer"] = "rms"
    norm_position: Literal["before", "after"] = "before"
    parallel_residual: bool = False
    activation: Literal["swiglu", "gelu"] = "swiglu"
    bias: bool = False
    embedding_multiplier: float = number(1.0, above=0)
    residual_multiplier: float = number(1.0, above=0)
    attention_multiplier: float | None = number(None, above=0)
    logits_divisor: float = number(1.0, above=0)

    def __post_init__(self) -> None:
        check_bounds(self, "model.")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads ({self.num_heads}) must be a multiple of model.num_kv_heads "
            f"({self.num_kv_heads})",
        )
        require(
            self.head_dim is not None or self.hidden_size % self.num_heads == 0,
            f"model.hidden_size ({self.hidden_size}) must be a multiple of model.num_heads "
            f"({self.num_heads}) unless model.head_dim is given",
        )
        require(
            self.resolved_head_dim >= 2 and self.resolved_head_dim % 2 == 0,
            f"model.head_dim must be positive and even, not {self.resolved_head_dim} (rotary "
            "positions)",
        )
        require(
            len(self.layers) >= 1 and self.num_layers % len(self.layers) == 0,
            f"model.layers names {len(self.layers)} layers, which must divide model.num_layers "
            f"({self.num_layers})",
        )
        require(
            0 <= self.partial_rotary_factor <= 1 and self.rotary_dim % 2 == 0,
            f"model.partial_rotary_factor ({self.partial_rotary_factor}) must lie between 0 and 1 "
            f"and leave an even part of a head, not {self.rotary_dim} of {self.resolved_head_dim}",
        )
        require(
            not (self.parallel_residual and self.norm_position == "after"),
            "model.parallel_residual needs norm_position `before`",
        )
        require(
            not self.parallel_residual
            or all(kind.feed_forward != "none" for kind in self.layer_specs),
            "model.parallel_residual needs a feed-forward in every layer",
        )

    @property
    def resolved_head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def rotary_dim(self) -> int:
        """Number of a head's dimensions that are rotated."""
        return int(self.resolved_head_dim * self.partial_rotary_factor)

    @property
    def layer_specs(self) -> tuple[LayerSpec, ...]:
        """What each layer is made of, one entry a layer."""
        pattern = [LayerSpec(*name.split("+")) for name in self.layers]  # type: ignore[arg-type]
        return tuple(pattern) * (self.num_layers // len(pattern))

    def has(self, part: Mixer | FeedForward) -> bool:
        """Whether any layer has this mixer or feed-forward."""
        return any(part in kind for kind in self.layer_specs)

    @property
    def repeats(self) -> int:
        """How often the shortest pattern that makes all layers is repeated; 1 where all layers are
        equal."""
        pattern = layer_pattern(self.layer_specs)
        return self.num_layers // len(pattern) if len(pattern) > 1 else 1

    @property
    def layer_groups(self) -> tuple[LayerGroup, ...]:
        """The groups of equal layers in one repeat of the pattern."""
        kinds = self.layer_specs[: self.num_layers // self.repeats]
        return tuple(
            LayerGroup(f"group_{i}", kind, len(list(equal)))
            for i, (kind, equal) in enumerate(itertools.groupby(kinds))
        )
