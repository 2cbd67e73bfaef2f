"""How the check for TPUs reads the compiler's seconds."""

import runpy
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "compile_for_tpu.py"


@pytest.mark.parametrize(
    ("reported", "seconds", "unknown"),
    [(0.875, 0.875, 0), (1.5, 1.5, 0), (-35.9677887, 0.0322113, 36), (-0.25, 0.75, 1)],
)
def test_an_operation_without_an_estimate_is_counted_and_costs_nothing(
    reported: float, seconds: float, unknown: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "")  # the tool sets them; this puts them back
    split_cost = runpy.run_path(str(TOOL))["split_cost"]
    assert split_cost(reported) == (pytest.approx(seconds), unknown)
