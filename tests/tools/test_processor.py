"""What benchmarks say of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from processor import processor

from frame_jax.parallel import hardware


def test_a_processor_is_named_with_what_decides_its_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "model name\t: A Processor\nflags\t\t: fpu avx2 avx512f sse\n"
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(hardware, "CPU_INFO", tmp_path / "cpuinfo")
    assert processor().startswith("A Processor, ")
    assert processor().endswith("cores, avx2, avx512f")
