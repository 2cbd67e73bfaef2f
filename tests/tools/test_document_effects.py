"""What single documents add to a difference: shares that sum to the verdict, and it without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from frame_jax.config.settings import settings_as_yaml
from frame_jax.report.study import read_study
from tests.report.synthetic import make_run
from tools.document_effects import Effects, main, read_effects


def test_shares_sum_to_the_verdict_of_every_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, directory = make_run(tmp_path, arms=("frame", "random"), steps=40, seeds=3)
    directory.config.write_text(settings_as_yaml(config), "utf-8")
    (comparison,) = read_study(config, directory).comparisons
    verdict, found = comparison.slices["all"], read_effects(tmp_path, "frame")
    by_seed = found.bits.sum(axis=1) / found.sizes.sum()
    np.testing.assert_allclose(by_seed, verdict.by_seed, rtol=1e-9)
    np.testing.assert_allclose(found.shares().sum(), verdict.mean, rtol=1e-9)
    assert main([str(tmp_path), "frame", "--most", "2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3 and f"difference {verdict.mean:+.4f}" in printed[0]
    assert main([str(tmp_path), "sawtooth"]) == 2
    assert "sawtooth has not been evaluated" in capsys.readouterr().err


def test_without_a_document_its_bytes_are_gone_too() -> None:
    bits = np.array([[8.0, 1.0, 3.0], [6.0, 2.0, 2.0]])
    found = Effects(["a", "b", "c"], np.array([10.0, 20.0, 30.0]), bits)
    np.testing.assert_allclose(found.shares(), [7 / 60, 1.5 / 60, 2.5 / 60])
    np.testing.assert_allclose(found.without(0), [4 / 50, 4 / 50])
