"""Pairs of reference models: what is planted in losses is found, and runs are read."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from frame_jax.config.models import ModelConfig
from frame_jax.config.settings import settings_as_yaml
from frame_jax.evaluation.results import read_result
from frame_jax.models.transformer import Decoder, write_description
from tests.report.synthetic import make_run
from tools.reference_pairs import Documents, Model, compare_all, compare_pair, main

COUNT, SEEDS = 4000, 3
IDS = [f"document {number:05}" for number in range(COUNT)]
SCOPE = np.arange(COUNT) % 2


def planted(noise: float) -> tuple[Model, Model]:
    """A weak and a strong model: the gap is the text's, in one of two groups ten times as wide and
    elsewhere, and each model adds noise of its own."""
    random = np.random.default_rng(0)
    hard, gap = random.normal(3, 0.5, COUNT), random.normal(0, 0.1, COUNT)
    scale = np.where(SCOPE == 0, 1.0, 10.0)

    def losses(values: np.ndarray) -> dict[int, dict[str, float]]:
        return {
            seed: dict(
                zip(IDS, values + scale * random.normal(0, noise / 2**0.5, COUNT), strict=True)
            )
            for seed in range(SEEDS)
        }

    return (
        Model("a", 10, "5", 500, 1e3, losses(hard + scale * gap + 3 * SCOPE)),
        Model("b", 20, "5", 500, 2e3, losses(hard)),
    )


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.2])
def test_noise_that_is_planted_is_found(noise: float) -> None:
    weak, strong = planted(noise)
    tokens = np.arange(COUNT)
    line = compare_pair(weak, strong, (weak, strong), Documents(IDS, SCOPE, tokens))
    share = 0.1**2 / (0.1**2 + noise**2)  # of the variance of a gap that is the text's
    assert line.pd == pytest.approx(share, abs=0.04)
    assert line.pd_long == pytest.approx(line.pd, abs=0.05)
    assert line.pd_averaged == pytest.approx(share * math.sqrt(2 / (1 + share)), abs=0.04)
    assert line.pd_averaged == pytest.approx(line.pd_averaged_by_rule, abs=0.03)
    assert line.pd_best == pytest.approx(line.pd, abs=1e-9)  # it is its own best pair
    assert line.flops == 3e3
    # The strong model's noise is in PD and in its loss, in each of the two groups.
    alike = [
        scale * noise**2 / 2 / math.sqrt((0.1**2 + noise**2) * (0.5**2 + (scale * noise) ** 2 / 2))
        for scale in (1, 10)
    ]
    assert line.pd_low_ppl == pytest.approx(sum(alike) / 2, abs=0.05)


def test_long_documents_are_those_above_the_median() -> None:
    """Noise in short documents alone leaves the long ones as they are."""
    weak, strong = planted(0.0)
    random = np.random.default_rng(1)
    for seed in range(SEEDS):
        for doc_id in IDS[: COUNT // 2]:
            weak.losses[seed][doc_id] += random.normal(0, 1)
    line = compare_pair(weak, strong, (weak, strong), Documents(IDS, SCOPE, np.arange(COUNT)))
    assert line.pd_long == pytest.approx(1.0) and line.pd < 0.8


def test_runs_are_read_and_their_models_paired(tmp_path: Path, capsys) -> None:
    for name, layers in (("small", 1), ("large", 2)):
        config, directory = make_run(tmp_path / name, steps=40, documents=240, seeds=2)
        directory.config.write_text(settings_as_yaml(config), "utf-8")
        for trial in config.trials:
            decoder = Decoder(ModelConfig(num_layers=layers), vocab_size=258)
            write_description(directory.pretrain(trial.name), decoder)
    found, lines = compare_all([tmp_path / "large", tmp_path / "small"])
    kept = len(read_result(directory, "random").checkpoints) - 1  # but for the initial weights
    assert len(lines) == kept**2 and len(found.ids) > 40
    assert all(line.weak[0] < line.strong[0] for line in lines)
    assert [line.flops for line in lines] == sorted(line.flops for line in lines)
    assert lines[0].pd_averaged is None  # of two seeds
    assert main([str(tmp_path / "large"), str(tmp_path / "small")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{len(found.ids)} documents" and len(printed) == 4 + kept**2

    assert main([str(tmp_path / "small")]) == 2
    assert "two sizes" in capsys.readouterr().err
