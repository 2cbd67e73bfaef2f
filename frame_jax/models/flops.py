"""How much arithmetic a model is: a shape in, floating-point operations out.

Convention: a multiply and an add are two operations; only matrix products count; attention is
causal, so a query meets half of the keys; the backward pass is twice the forward pass; what remat
computes again does not count. Model FLOPs utilisation (MFU) is these over what the chips could do.
"""

from __future__ import annotations

from frame_jax.config.models import ModelConfig

# Dense bfloat16 FLOPs a second of one device, from the makers' data sheets, by JAX `device_kind`.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
# Memory of one device that a program may use, as the TPU compiler reports it.
HBM_GIB = {"TPU v4": 31.75, "TPU v5 lite": 15.75, "TPU v5": 95.74, "TPU v6 lite": 31.25}


def matrix_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Parameters that take part in a matrix product for every token.

    The embedding lookup is none; the output projection is one, tied or not.
    """
    heads, kv_heads = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
    attention = config.hidden_size * (2 * heads + 2 * kv_heads)
    feed_forward = 3 * config.hidden_size * config.intermediate_size
    return config.num_layers * (attention + feed_forward) + vocab_size * config.hidden_size


def parameter_count(config: ModelConfig, vocab_size: int) -> int:
    """All parameters: matrices, embeddings, norms and biases."""
    heads, kv_heads = config.num_heads * config.head_width, config.num_kv_heads * config.head_width
    layer = 2 * config.hidden_size
    layer += (heads + 2 * kv_heads) * config.qkv_bias + 2 * config.head_width * config.qk_norm
    tables = 1 if config.tie_embeddings else 2
    return (
        matrix_parameters(config, 0)
        + tables * vocab_size * config.hidden_size
        + config.num_layers * layer
        + config.hidden_size
    )


def forward_flops_per_token(config: ModelConfig, vocab_size: int, length: int) -> float:
    """Mean forward FLOPs of a token in a row of `length` tokens.

    >>> tiny = ModelConfig(hidden_size=2, intermediate_size=3, num_layers=1, num_heads=1,
    ...                    num_kv_heads=1)
    >>> forward_flops_per_token(tiny, vocab_size=5, length=8)  # 2 * (16 + 18 + 10) + 4 * 4 * 2
    120.0
    """
    heads = config.num_heads * config.head_width
    scores_and_mix = 2 * 2 * (length / 2) * heads * config.num_layers
    return 2 * matrix_parameters(config, vocab_size) + scores_and_mix


def training_flops_per_token(config: ModelConfig, vocab_size: int, length: int) -> float:
    """Mean FLOPs of a token in a training step: forward and backward."""
    return 3 * forward_flops_per_token(config, vocab_size, length)


def model_flops_utilisation(
    flops_per_token: float, tokens_per_second: float, device_kind: str, devices: int
) -> float | None:
    """MFU between 0 and 1; None for a device whose peak is not in `PEAK_FLOPS`."""
    peak = PEAK_FLOPS.get(device_kind)
    return None if peak is None else flops_per_token * tokens_per_second / (peak * devices)
