from pathlib import Path

import jax.numpy as jnp
import pytest

from frame_jax.models.flops import PEAK_FLOPS, model_flops_utilisation
from frame_jax.training.trainer import step_trace


@pytest.mark.slow
def test_a_trace_is_written_for_the_steps_asked(tmp_path: Path) -> None:
    state, written = jnp.ones(4), []
    with step_trace(tmp_path, "1:3") as before_step:
        for step in range(5):
            before_step(step, state)
            state = state * 2
            written.append(bool(list(tmp_path.rglob("*.xplane.pb"))))
    assert written == [False, False, False, True, True]


@pytest.mark.slow
def test_a_trace_ends_with_training(tmp_path: Path) -> None:
    with step_trace(tmp_path, "1:30") as before_step:
        for step in range(3):
            before_step(step, jnp.ones(4))
    assert list(tmp_path.rglob("*.xplane.pb"))


def test_utilisation_is_of_all_devices_and_unknown_for_unknown_ones() -> None:
    peak = PEAK_FLOPS["TPU v5"]
    assert model_flops_utilisation(1e9, peak / 1e9, "TPU v5", 2) == pytest.approx(0.5)
    assert model_flops_utilisation(1e9, 1.0, "cpu", 1) is None
