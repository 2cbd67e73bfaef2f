import dataclasses

import jax
import numpy as np
import optax
import pytest

from frame_jax.config import ModelConfig, ScheduleConfig, TrainingConfig
from frame_jax.models.functional import Decoder
from frame_jax.training.optimizer import decay_mask, make_optimizer
from frame_jax.training.schedules import learning_rate

STEPS = 100
BASE = ScheduleConfig(peak=2.0, warmup_fraction=0.1, decay_fraction=0.2, final_fraction=0.1)


def rates(kind: str) -> np.ndarray:
    return np.asarray(
        learning_rate(dataclasses.replace(BASE, kind=kind), np.arange(STEPS), STEPS), np.float64
    )


@pytest.mark.parametrize("kind", ["constant", "cosine", "wsd"])
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


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("kind", ["constant", "cosine", "wsd"])
def test_very_short_runs_have_finite_positive_rates(kind: str, steps: int) -> None:
    values = learning_rate(dataclasses.replace(BASE, kind=kind), np.arange(steps), steps)
    assert np.isfinite(values).all() and (np.asarray(values) > 0).all()


def test_decay_spares_norms_and_embeddings() -> None:
    model = ModelConfig(
        hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=1
    )
    decoder = Decoder(model, 32)
    mask = decay_mask(decoder.axes())
    assert not mask["embedding"] and not mask["final_norm"]
    layers = mask["layers"]
    assert not layers["attention_norm"] and not layers["mlp_norm"]
    assert layers["query"] and layers["down"]

    # With zero gradients, only decayed parameters move.
    config = TrainingConfig(schedule=ScheduleConfig(kind="constant", peak=0.1, warmup_fraction=0))
    optimizer = make_optimizer(config, decoder, 10)
    params = decoder.init(jax.random.key(0))
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)
    expected = jax.tree.map(lambda p, decays: p * (1 - 0.1 * 0.1) if decays else p, params, mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), moved, expected)
