"""Parameters and arithmetic of every kind of layer, against sums done by hand."""

import dataclasses

import pytest

from frame_jax.config.models import ExpertsConfig, LayerName, Mamba2Config, ModelConfig
from frame_jax.models.flops import (
    active_parameter_count,
    forward_flops_per_token,
    matrix_param_count,
    training_flops_per_token,
)
from frame_jax.models.transformer import Decoder

TINY = ModelConfig(
    hidden_size=4,
    intermediate_size=7,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    experts=ExpertsConfig(num_experts=8, num_experts_per_token=2, intermediate_size=3),
    mamba2=Mamba2Config(num_heads=2, head_dim=3, state_size=5),
)
# Query and output 4 x 4, key and value 4 x 2; scores and mix of half of 10 tokens, width 4.
ATTENTION, ATTENDED = 16 + 16 + 8 + 8, 2 * 2 * 5 * 4
# Gate, input and output 4 x 6, B and C 4 x 5, step size 4 x 2; two heads make and read 5 x 3.
MAMBA2, RECURRED = 3 * 24 + 2 * 20 + 8, 2 * (2 * 15 + 2 * 15)
DENSE = 3 * 4 * 7
EXPERTS = 4 * 8 + 2 * 3 * 4 * 3  # the router, and two of its experts
NEOX = dataclasses.replace(
    TINY, norm="layer", bias=True, qkv_bias=True, activation="gelu", parallel_residual=True
)


def decoder(config: ModelConfig) -> Decoder:
    return Decoder(config, 11)


def test_every_parameter_of_a_layer_is_counted() -> None:
    vectors = 2 * (4 + 4) + (4 + 2 + 2) + 4 + 7 + 4  # norms; biases of attention and dense layer
    tables = 11 * 4 + 4 + 4  # embedding, final norm
    assert decoder(NEOX).parameter_count() == ATTENTION + 2 * 4 * 7 + vectors + tables


@pytest.mark.parametrize(
    ("name", "matrices", "beside"),
    [
        ("attention+dense", ATTENTION + DENSE, ATTENDED),
        ("attention+experts", ATTENTION + EXPERTS, ATTENDED),
        ("attention+none", ATTENTION, ATTENDED),
        ("mamba2+dense", MAMBA2 + DENSE, RECURRED),
        ("mamba2+experts", MAMBA2 + EXPERTS, RECURRED),
        ("mamba2+none", MAMBA2, RECURRED),
    ],
)
def test_a_layer_costs_what_its_token_meets(name: LayerName, matrices: int, beside: int) -> None:
    config = dataclasses.replace(TINY, layers=(name,))
    assert matrix_param_count(decoder(config)) == matrices + 4 * 11
    assert forward_flops_per_token(decoder(config), 10) == 2 * (matrices + 4 * 11) + beside
    assert training_flops_per_token(decoder(config), 10) == 3 * forward_flops_per_token(
        decoder(config), 10
    )


def test_layers_of_a_pattern_add_up_and_only_attention_looks_back() -> None:
    config = dataclasses.replace(TINY, num_layers=4, layers=("mamba2+dense", "attention+experts"))
    matrices = 2 * (MAMBA2 + DENSE + ATTENTION + EXPERTS) + 4 * 11
    assert forward_flops_per_token(decoder(config), 10) == 2 * matrices + 2 * (RECURRED + ATTENDED)
    longer = forward_flops_per_token(decoder(config), 20) - forward_flops_per_token(
        decoder(config), 10
    )
    assert longer == 2 * ATTENDED
    alone = dataclasses.replace(TINY, layers=("mamba2+none",))
    assert forward_flops_per_token(decoder(alone), 10) == forward_flops_per_token(
        decoder(alone), 10_000
    )


def test_experts_that_a_token_does_not_meet_are_parameters_but_not_active() -> None:
    config = dataclasses.replace(TINY, num_layers=3, layers=("attention+experts",))
    idle = 3 * (8 - 2) * 3 * 4 * 3
    assert decoder(config).parameter_count() - active_parameter_count(decoder(config)) == idle
    assert active_parameter_count(decoder(TINY)) == decoder(TINY).parameter_count()


def test_biases_and_a_feed_forward_without_a_gate_cost_their_matrices() -> None:
    assert matrix_param_count(decoder(NEOX)) == ATTENTION + 2 * 4 * 7 + 4 * 11


def test_flops_approach_six_times_parameters_where_attention_is_short() -> None:
    config = ModelConfig(hidden_size=256, num_layers=8)
    flops = training_flops_per_token(Decoder(config, 1024), length=1)
    assert flops == pytest.approx(6 * Decoder(config, 1024).parameter_count(), rel=0.01)
    # Causal attention: 12 * layers * width * length / 2 on top.
    longer = training_flops_per_token(Decoder(config, 1024), length=1001)
    assert longer - flops == pytest.approx(6 * 8 * 256 * 1000)
