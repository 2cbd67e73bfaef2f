"""Exports where nothing can be written: one message that names what, and nothing is left behind."""

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from frame_jax import export_order as order
from frame_jax.export import checkpoint
from tests.arm import make_arm
from tests.export.order.test_order import make_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`arm`, with checkpoints, and `order`, partitioned."""
    root = tmp_path_factory.mktemp("runs")
    make_arm(root / "arm")
    make_run(root / "order")
    return root


def commands(runs: Path, out: Path) -> list[Callable[[], int]]:
    arm, partitioned = str(runs / "arm"), str(runs / "order")
    return [
        lambda: checkpoint.main([arm, "--out", str(out)]),
        lambda: order.main([partitioned, "--to", "parquet", "--out", str(out)]),
        lambda: order.main([partitioned, "--to", "manifest", "--out", str(out)]),
    ]


@pytest.mark.slow
def test_a_full_disk_is_named_and_nothing_stays(
    runs: Path,
    tmp_path: Path,
    limit_files: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for index, size in enumerate((20_000, 3_000)):
        out = tmp_path / str(index) / "out"
        command = commands(runs, out)[index]
        limit_files(size)
        assert command() == 2
        limit_files(resource.RLIM_INFINITY)
        shown = capsys.readouterr().err
        assert f"error: no room to write {out}: " in shown and "kept" not in shown
        assert shown.count("error: ") == 1 and list(out.parent.iterdir()) == []
        assert command() == 0 and out.is_dir()


@pytest.mark.parametrize("place", ["/proc/out", "file/out"])
def test_where_nothing_can_be_written_another_place_is_advised(
    runs: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for command in commands(runs, tmp_path / place):
        assert command() == 2
        shown = capsys.readouterr().err
        assert "error: --out: nothing can be written to" in shown and "another --out" in shown
