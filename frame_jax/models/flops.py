"""How much arithmetic a model is: a shape in, floating-point operations out.

Convention: a multiply and an add are two operations; only matrix products count; attention is
causal, so a query meets half of the keys; Mamba-2 is its recurrence; of a mixture, the router and
the experts of a token; the backward pass is twice the forward pass; what remat computes again does
not count. Model FLOPs utilisation (MFU) is these over what the chips could do.
"""

from __future__ import annotations

from frame_jax.config.models import LayerSpec, ModelConfig

# Dense bfloat16 FLOPs a second of one device, from the makers' data sheets, by JAX `device_kind`.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 1153.5e12,  # a device is one of a chip's two halves
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
# Memory of one device that a program may use, as the TPU compiler reports it.
HBM_GIB = {
    "TPU v4": 31.75,
    "TPU v5 lite": 15.75,
    "TPU v5": 95.74,
    "TPU v6 lite": 31.25,
    "TPU7x": 94.74,
}


def matrix_param_count(config: ModelConfig, vocab_size: int) -> int:
    """Parameters that take part in a matrix product for a token: of experts, those of its own.

    The embedding lookup is none; the output projection is one, tied or not.
    """
    c = config
    layers = sum(
        mixer_matrix_params(c, spec)
        + feed_forward_matrix_params(c, spec, c.experts.num_experts_per_token)
        for spec in c.layer_specs
    )
    return layers + vocab_size * c.hidden_size


def mixer_matrix_params(c: ModelConfig, spec: LayerSpec) -> int:
    """Parameters of the matrices of a layer's mixer."""
    if spec.mixer == "mamba2":
        m = c.mamba2
        gate_input_and_output, maps = 3 * m.inner_dim, 2 * m.groups * m.state_size
        return c.hidden_size * (gate_input_and_output + maps + m.num_heads)
    heads, kv_heads = c.num_heads * c.resolved_head_dim, c.num_kv_heads * c.resolved_head_dim
    return c.hidden_size * (2 * heads + 2 * kv_heads)


def feed_forward_matrix_params(c: ModelConfig, spec: LayerSpec, experts: int) -> int:
    """Parameters of the matrices of a layer's feed-forward, with so many of its experts."""
    match spec.feed_forward:
        case "none":
            return 0
        case "dense":
            return (3 if c.activation == "swiglu" else 2) * c.hidden_size * c.intermediate_size
        case "experts":
            e = c.experts
            widths = experts * e.intermediate_size + e.shared_expert_intermediate_size
            return c.hidden_size * (e.num_experts + 3 * widths)


def vector_params(c: ModelConfig, spec: LayerSpec) -> int:
    """All other parameters of a layer: norms, biases, convolutions and the like."""
    norm = c.hidden_size * (2 if c.norm == "layer" else 1)
    count = norm if spec.feed_forward == "none" else 2 * norm
    if spec.mixer == "mamba2":
        m = c.mamba2
        channels = m.inner_dim + 2 * m.groups * m.state_size
        count += channels * (m.conv_kernel + m.conv_bias) + 3 * m.num_heads + m.inner_dim
    else:
        heads, kv_heads = c.num_heads * c.resolved_head_dim, c.num_kv_heads * c.resolved_head_dim
        count += (heads + 2 * kv_heads) * c.qkv_bias + c.hidden_size * c.bias
        whole = c.qk_norm_over == "projection"
        count += (heads + kv_heads if whole else 2 * c.resolved_head_dim) * c.qk_norm
    if spec.feed_forward == "dense":
        inner = c.intermediate_size * (2 if c.activation == "swiglu" else 1)
        count += (inner + c.hidden_size) * c.bias
    elif spec.feed_forward == "experts":
        count += c.experts.num_experts * c.experts.router_bias
    return count


def parameter_count(config: ModelConfig, vocab_size: int) -> int:
    """All parameters: matrices, embeddings, norms and biases."""
    return _parameters(config, vocab_size, config.experts.num_experts)


def active_parameter_count(config: ModelConfig, vocab_size: int) -> int:
    """Those of them that a token meets: all but the experts that its router leaves out."""
    return _parameters(config, vocab_size, config.experts.num_experts_per_token)


def _parameters(c: ModelConfig, vocab_size: int, experts: int) -> int:
    layers = sum(
        mixer_matrix_params(c, spec)
        + feed_forward_matrix_params(c, spec, experts)
        + vector_params(c, spec)
        for spec in c.layer_specs
    )
    tables = 1 if c.tie_embeddings else 2
    final_norm = c.hidden_size * (2 if c.norm == "layer" else 1)
    return layers + tables * vocab_size * c.hidden_size + final_norm


def forward_flops_per_token(config: ModelConfig, vocab_size: int, length: int) -> float:
    """Mean forward FLOPs of a token in a row of `length` tokens.

    >>> tiny = ModelConfig(hidden_size=2, intermediate_size=3, num_layers=1, num_heads=1,
    ...                    num_kv_heads=1)
    >>> forward_flops_per_token(tiny, vocab_size=5, length=8)  # 2 * (16 + 18 + 10) + 4 * 4 * 2
    120.0
    """
    mixed = sum(mixing_flops(config, spec, length) for spec in config.layer_specs)
    return 2 * matrix_param_count(config, vocab_size) + mixed


def mixing_flops(c: ModelConfig, spec: LayerSpec, length: int) -> float:
    """Forward FLOPs of a token in a layer's mixer beside its projections.

    Attention: scores and their mix, over half of the row. Mamba-2: its recurrence (Dao and
    Gu 2024, arXiv 2405.21060, section 2), h[t] = a[t] * h[t-1] + b[t] x[t]^T and y[t] = c[t]^T h[t]
    for each head: a product that adds to a state [N, P] and one that reads it, 2 * N * P each,
    whatever the length; what computing it in chunks costs beyond that does not count. The decay of
    the state, the skip and the convolution, number by number, are no matrix products.
    """
    if spec.mixer == "mamba2":
        return 2 * 2 * c.mamba2.state_size * c.mamba2.inner_dim
    return 2 * 2 * (length / 2) * c.num_heads * c.resolved_head_dim


def training_flops_per_token(config: ModelConfig, vocab_size: int, length: int) -> float:
    """Mean FLOPs of a token in a training step: forward and backward."""
    return 3 * forward_flops_per_token(config, vocab_size, length)


def model_flops_utilisation(
    flops_per_token: float, tokens_per_second: float, device_kind: str, devices: int
) -> float | None:
    """MFU between 0 and 1; None for a device whose peak is not in `PEAK_FLOPS`."""
    peak = PEAK_FLOPS.get(device_kind)
    return None if peak is None else flops_per_token * tokens_per_second / (peak * devices)
