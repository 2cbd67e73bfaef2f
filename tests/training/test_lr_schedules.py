import dataclasses

import jax
import numpy as np
import optax
import pytest

from frame_jax.config.models import ModelConfig
from frame_jax.config.training import LRScheduleConfig, OptimizerConfig, TrainingConfig
from frame_jax.models.transformer import Decoder
from frame_jax.training.optimizer import decay_mask, learning_rate, make_optimizer

STEPS = 100
KINDS = ("constant", "cosine", "linear", "inverse_sqrt", "wsd")
BASE = LRScheduleConfig(peak=2.0, warmup_fraction=0.1, decay_fraction=0.2, final_fraction=0.1)


def rates(kind: str) -> np.ndarray:
    return np.asarray(
        learning_rate(dataclasses.replace(BASE, kind=kind), np.arange(STEPS), STEPS), np.float64
    )


@pytest.mark.parametrize("kind", KINDS)
def test_warm_up_reaches_the_peak_at_its_last_step(kind: str) -> None:
    np.testing.assert_allclose(rates(kind)[:10], 2.0 * np.arange(1, 11) / 10, rtol=1e-6)


def test_first_last_and_boundary_steps() -> None:
    assert rates("constant")[-1] == pytest.approx(2.0)
    assert rates("cosine")[-1] == pytest.approx(0.2)
    half = 9 + (STEPS - 1 - 9) // 2  # half way from the peak to the end
    assert rates("cosine")[half] == pytest.approx((2.0 + 0.2) / 2)
    wsd = rates("wsd")
    assert wsd[79] == pytest.approx(2.0) and wsd[80] < 2.0
    np.testing.assert_allclose(np.diff(wsd[79:]), -1.8 / 20, rtol=1e-4)
    assert wsd[-1] == pytest.approx(0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_warm_up_begins_where_it_is_told(kind: str) -> None:
    """From a fifth of the peak; what follows is as without."""
    config = dataclasses.replace(BASE, kind=kind, initial=0.2)
    found = np.asarray(learning_rate(config, np.arange(STEPS), STEPS), np.float64)
    np.testing.assert_allclose(found[:10], 2.0 * (0.2 + 0.08 * np.arange(1, 11)), rtol=1e-6)
    np.testing.assert_array_equal(found[10:], rates(kind)[10:])
    held = dataclasses.replace(config, initial=1.0)
    np.testing.assert_allclose(learning_rate(held, np.arange(10), STEPS), 2.0, rtol=1e-6)


def closed_form(kind: str, step: int) -> float:
    """The rate of an update: 10 steps of warm-up, a peak of 2, a tenth of it at the end."""
    if step < 10:
        return 2.0 * (step + 1) / 10
    if kind == "linear":
        return 0.2 + 1.8 * (STEPS - 1 - step) / (STEPS - 10)
    return max(0.2, 2.0 * (10 / (step + 1)) ** 0.5)


@pytest.mark.parametrize("kind", ["linear", "inverse_sqrt"])
def test_rates_are_those_of_the_formulas(kind: str) -> None:
    expected = [closed_form(kind, step) for step in range(STEPS)]
    np.testing.assert_allclose(rates(kind), expected, rtol=1e-6)
    high = dataclasses.replace(BASE, kind=kind, final_fraction=0.5)
    values = np.asarray(learning_rate(high, np.arange(STEPS), STEPS))
    assert values[10:].min() == pytest.approx(1.0)  # which both come down to


def test_linear_rates_are_those_of_optax() -> None:
    """Whose warm-up begins at the rate itself: ours makes its first step one step later."""
    optax_rates = optax.schedules.join_schedules(
        [
            optax.schedules.linear_schedule(2.0 * 0.3, 2.0, 10),
            optax.schedules.linear_schedule(2.0, 0.2, STEPS - 10),
        ],
        [10],
    )
    config = dataclasses.replace(BASE, kind="linear", initial=0.3)
    found = learning_rate(config, np.arange(STEPS), STEPS)
    np.testing.assert_allclose(found, [optax_rates(s + 1) for s in range(STEPS)], rtol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["linear", "inverse_sqrt", "cosine"])
def test_rates_are_those_of_transformers(kind: str) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch, which is not installed")
    optimization = pytest.importorskip("transformers.optimization")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=2.0)
    if kind == "inverse_sqrt":
        schedule = optimization.get_inverse_sqrt_schedule(optimizer, 10)
    else:
        make = getattr(optimization, f"get_{kind}_schedule_with_warmup")
        schedule = make(optimizer, 10, STEPS)
    config = dataclasses.replace(BASE, kind=kind, final_fraction=0.0)
    (theirs,) = schedule.lr_lambdas
    found = learning_rate(config, np.arange(STEPS), STEPS)
    expected = [2.0 * theirs(step + 1) for step in range(STEPS)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_very_short_runs_have_finite_positive_rates(kind: str, steps: int) -> None:
    values = learning_rate(dataclasses.replace(BASE, kind=kind), np.arange(steps), steps)
    assert np.isfinite(values).all() and (np.asarray(values) > 0).all()


def test_the_decay_ends_where_it_is_put() -> None:
    config = dataclasses.replace(BASE, kind="wsd", decay_end=0.6)
    values = np.asarray(learning_rate(config, np.arange(STEPS), STEPS))
    assert values[39] == pytest.approx(2.0) and values[40] < 2.0
    np.testing.assert_allclose(values[59:], 0.2, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_restarted_schedule_is_a_whole_schedule_in_every_stage(kind: str) -> None:
    config = dataclasses.replace(BASE, kind=kind)
    restarted = dataclasses.replace(config, restart_at_stages=True)
    values = learning_rate(restarted, np.arange(STEPS), STEPS, [0, 30, 70])
    alone = [learning_rate(config, np.arange(length), length) for length in (30, 40, 30)]
    np.testing.assert_array_equal(values, np.concatenate(alone))


def small() -> tuple[Decoder, dict, dict]:
    """A decoder, its parameters, and gradients as large as they."""
    model = ModelConfig(
        hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=1
    )
    decoder = Decoder(model, 32)
    params = decoder.init(jax.random.key(0))
    return decoder, params, jax.tree.map(lambda p: 0.1 * np.cos(7 * p), params)


def optimizer_of(**settings: object) -> tuple[optax.GradientTransformation, dict, dict]:
    decoder, params, grads = small()
    schedule = LRScheduleConfig(kind="constant", peak=0.01, warmup_fraction=0)
    config = TrainingConfig(lr_schedule=schedule, optimizer=OptimizerConfig(**settings))
    return make_optimizer(config, decoder, 10), params, grads


def test_muon_turns_matrices_of_layers_into_orthogonal_steps_and_leaves_the_rest_to_adam() -> None:
    muon, params, grads = optimizer_of(kind="muon")
    turned, _ = muon.update(grads, muon.init(params), params)
    for name in ("embedding", "final_norm"):  # Adam's first step has one size for every element
        np.testing.assert_array_equal(np.sign(turned[name]), -np.sign(grads[name]))
        np.testing.assert_allclose(np.abs(turned[name]), np.abs(turned[name]).mean(), rtol=1e-3)
    for layer in np.asarray(turned["layers"]["group_0"]["gate"], np.float64):
        singular = np.linalg.svd(layer, compute_uv=False)
        assert singular.min() > 0.4 * singular.max()  # Newton-Schulz stops early
        assert np.sqrt((layer**2).mean()) == pytest.approx(0.2 * 0.01, rel=0.3)


def test_the_first_moment_can_be_bfloat16() -> None:
    optimizer, params, _ = optimizer_of(first_moment_dtype="bfloat16")
    adam = optimizer.init(params)[1][0]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(adam.mu)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(adam.nu)} == {"float32"}


def test_decay_spares_norms_and_embeddings() -> None:
    decoder, params, _ = small()
    mask = decay_mask(decoder.axes())
    assert not mask["embedding"] and not mask["final_norm"]
    layers = mask["layers"]["group_0"]
    assert not layers["attention_norm"] and not layers["mlp_norm"]
    assert layers["query"] and layers["down"]

    # With zero gradients, only decayed parameters move.
    config = TrainingConfig(
        lr_schedule=LRScheduleConfig(kind="constant", peak=0.1, warmup_fraction=0)
    )
    optimizer = make_optimizer(config, decoder, 10)
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)
    expected = jax.tree.map(lambda p, decays: p * (1 - 0.1 * 0.1) if decays else p, params, mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), moved, expected)
