"""A model card states the held-out loss of the weights it goes with, and of no others."""

from __future__ import annotations

from pathlib import Path

from frame_jax.evaluation.results import HeldOutLoss, TrialResult, WeightsResult, write_result
from frame_jax.evaluation.weights import Weights
from frame_jax.export.checkpoint import held_out_section
from frame_jax.run.directory import RunDirectory


def test_the_card_has_the_loss_of_its_own_weights(tmp_path: Path) -> None:
    directory, mean = RunDirectory(tmp_path), Weights("average-last2", (3, 6))
    third, last = Weights.of_step(3), Weights.of_step(6)
    assert held_out_section(directory, "frame", last) == ""  # not evaluated

    def measured(name: str, nll: float) -> WeightsResult:
        return WeightsResult(name, (6,), 6, 60, {"all": HeldOutLoss(5, 9, 9, 9 * nll, nll, 1.0)})

    checkpoints = measured("3", 3.25), measured("6", 2.5)
    averages = (measured("average-last2", 2.125),)
    write_result(directory, TrialResult("frame", checkpoints, averages))
    assert "2.5000 nats" in held_out_section(directory, "frame", last)
    assert "over 5 documents" in held_out_section(directory, "frame", last)
    assert "3.2500 nats" in held_out_section(directory, "frame", third)
    assert "2.1250 nats" in held_out_section(directory, "frame", mean)
    assert held_out_section(directory, "frame", Weights.of_step(4)) == ""
    other = Weights("average-last3", (1, 3, 6))
    assert held_out_section(directory, "frame", other) == ""
