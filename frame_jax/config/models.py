"""Settings of a model's shape."""

from __future__ import annotations

from dataclasses import dataclass

from frame_jax.config.base import require


@dataclass(frozen=True)
class RopeScalingConfig:
    """Stretched rotary frequencies, as in Llama 3.1: slow ones are divided by `factor`.

    Attributes:
        factor: Divisor of the slow frequencies.
        low_freq_factor: Frequencies with fewer turns than this in `original_context` are divided.
        high_freq_factor: Frequencies with more turns are kept; between the two they are blended.
        original_context: Tokens of context before the stretch.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def __post_init__(self) -> None:
        require(
            self.factor > 0
            and 0 < self.low_freq_factor < self.high_freq_factor
            and self.original_context >= 1,
            "model.rope_scaling: factor and original_context must be positive, and low_freq_factor "
            "below high_freq_factor",
        )


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a dense decoder. The vocabulary comes from the tokenizer.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the SwiGLU feed-forward layer.
        num_layers: Decoder layers.
        num_heads: Query heads.
        num_kv_heads: Key and value heads (grouped-query attention); divides `num_heads`.
        head_dim: Width of a head; null means hidden_size / num_heads. Even (rotary pairs).
        rope_theta: Base of the rotary frequencies.
        rope_scaling: Stretch of the rotary frequencies; null leaves them.
        norm_eps: Added to the mean square inside RMSNorm.
        qkv_bias: Whether queries, keys and values have a bias (Qwen2).
        qk_norm: Whether each head's queries and keys are normed before rotation (Qwen3).
        tie_embeddings: Whether the output projection is the transposed embedding.
    """

    hidden_size: int = 256
    intermediate_size: int = 704
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int | None = None
    rope_theta: float = 10_000.0
    rope_scaling: RopeScalingConfig | None = None
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        for key in ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
            require(
                getattr(self, key) >= 1, f"model.{key} must be at least 1, not {getattr(self, key)}"
            )
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads ({self.num_heads}) must be a multiple of model.num_kv_heads "
            f"({self.num_kv_heads})",
        )
        if self.head_dim is None:
            require(
                self.hidden_size % self.num_heads == 0,
                f"model.hidden_size ({self.hidden_size}) must be a multiple of model.num_heads "
                f"({self.num_heads}) unless model.head_dim is given",
            )
        require(
            self.head_width >= 2 and self.head_width % 2 == 0,
            f"model.head_dim must be positive and even, not {self.head_width} (rotary positions)",
        )
        for key in ("rope_theta", "norm_eps"):
            value = getattr(self, key)
            require(value > 0, f"model.{key} must be positive, not {value}")

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads if self.head_dim is None else self.head_dim
