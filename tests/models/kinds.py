"""Tiny decoders of every kind, for tests."""

from frame_jax.config.models import ExpertsConfig, Mamba2Config, ModelConfig

EXPERTS = ExpertsConfig(num_experts=8, num_experts_per_token=2, intermediate_size=16)
MAMBA2 = Mamba2Config(num_heads=4, head_dim=16, state_size=8, groups=2, chunk_size=16)


def shape(num_layers: int = 2, **settings: object) -> ModelConfig:
    """A model of 32 columns."""
    return ModelConfig(
        hidden_size=32,
        intermediate_size=64,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=2,
        **{"experts": EXPERTS, "mamba2": MAMBA2, **settings},  # type: ignore[arg-type]
    )


KINDS = {
    "dense": shape(),
    "neox": shape(
        norm="layer",
        parallel_residual=True,
        activation="gelu",
        bias=True,
        qkv_bias=True,
        partial_rotary_factor=0.25,
        tie_embeddings=False,
    ),
    "olmo2": shape(norm_position="after", qk_norm=True, qk_norm_over="projection"),
    "experts": shape(layers=("attention+experts",)),
    "sigmoid": shape(
        layers=("attention+experts",),
        experts=ExpertsConfig(
            8,
            3,
            16,
            shared_expert_intermediate_size=8,
            scores="sigmoid",
            norm_topk_prob=True,
            router_bias=True,
        ),
    ),
    "mamba2": shape(layers=("mamba2+none",)),
    "hybrid": shape(
        6,
        layers=("mamba2+dense", "mamba2+dense", "attention+experts"),
        partial_rotary_factor=0.0,
        residual_multiplier=0.5,
        embedding_multiplier=2.0,
        attention_multiplier=0.3,
        logits_divisor=2.0,
    ),
}
