import pytest

from frame_jax.config.models import ModelConfig
from frame_jax.models.flops import parameter_count, training_flops_per_token
from frame_jax.models.functional import Decoder


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(),
        ModelConfig(tie_embeddings=False, num_layers=3),
        ModelConfig(qkv_bias=True, qk_norm=True, head_dim=32),
    ],
)
def test_parameters_are_counted_without_making_them(config: ModelConfig) -> None:
    assert parameter_count(config, 640) == Decoder(config, 640).parameter_count()


def test_flops_approach_six_times_parameters_where_attention_is_short() -> None:
    config = ModelConfig(hidden_size=256, num_layers=8)
    flops = training_flops_per_token(config, 1024, length=1)
    assert flops == pytest.approx(6 * parameter_count(config, 1024), rel=0.01)
    # Causal attention: 12 * layers * width * length / 2 on top.
    longer = training_flops_per_token(config, 1024, length=1001)
    assert longer - flops == pytest.approx(6 * 8 * 256 * 1000)
