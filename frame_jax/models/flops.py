"""Counts a model's parameters and floating-point operations.

Convention: a multiply and an add are two operations; only matrix products count; attention is
causal, so a query meets half of the keys; Mamba-2 is its recurrence; of a mixture, the router and
the experts of a token; the backward pass is twice the forward pass; what remat computes again does
not count. Model FLOPs utilisation (MFU) is these over what the chips could do.
"""

import functools

import jax

from frame_jax.config.models import LayerSpec, ModelConfig
from frame_jax.models.transformer import Decoder

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


@functools.cache
def active_parameter_count(decoder: Decoder, *without: str) -> int:
    """The parameters that a token meets: all but the experts that its router leaves out, and those
    that have one of the logical axes `without`."""
    e = decoder.config.experts
    every = jax.tree.leaves(decoder.axes(), is_leaf=lambda node: isinstance(node, tuple))
    return sum(
        leaf.size // e.num_experts * e.num_experts_per_token if "expert" in axes else leaf.size
        for axes, leaf in zip(every, jax.tree.leaves(decoder.shapes()), strict=True)
        if not set(without) & set(axes)
    )


def matrix_param_count(decoder: Decoder) -> int:
    """Parameters that take part in a matrix product for a token: of experts, those of its own.

    The embedding lookup is none; the output projection is one, tied or not.
    """
    projection = decoder.vocab_size * decoder.config.hidden_size
    return projection + active_parameter_count(decoder, "norm", "conv", "vocab")


def forward_flops_per_token(decoder: Decoder, length: int) -> float:
    """Mean forward FLOPs of a token in a row of `length` tokens.

    >>> tiny = ModelConfig(hidden_size=2, intermediate_size=3, num_layers=1, num_heads=1,
    ...                    num_kv_heads=1)
    >>> decoder = Decoder(tiny, vocab_size=5)
    >>> forward_flops_per_token(decoder, length=8)  # 2 * (16 + 18 + 10) + 4 * 4 * 2
    120.0
    """
    c = decoder.config
    mixed = sum(mixing_flops(c, spec, length) for spec in c.layer_specs)
    return 2 * matrix_param_count(decoder) + mixed


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


def training_flops_per_token(decoder: Decoder, length: int) -> float:
    """Mean FLOPs of a token in a training step: forward and backward."""
    return 3 * forward_flops_per_token(decoder, length)


def model_flops_utilisation(
    flops_per_token: float, tokens_per_second: float, device_kind: str, devices: int
) -> float | None:
    """MFU between 0 and 1; None for a device whose peak is not in `PEAK_FLOPS`."""
    peak = PEAK_FLOPS.get(device_kind)
    return None if peak is None else flops_per_token * tokens_per_second / (peak * devices)
