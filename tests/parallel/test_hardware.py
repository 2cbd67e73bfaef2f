"""Which devices multiply bfloat16, by what JAX and Linux say of them."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from frame_jax.parallel import hardware


@pytest.mark.parametrize(
    ("platform", "capability", "expected"),
    [
        ("tpu", None, True),
        ("gpu", "7.5", False),
        ("gpu", "8.0", True),
        ("gpu", "10.0", True),
        ("gpu", "gfx90a", False),
    ],
)
def test_accelerators(platform: str, capability: str | None, expected: bool) -> None:
    device = SimpleNamespace(platform=platform, compute_capability=capability)
    assert hardware.multiplies_bfloat16(device) is expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 sse\n", True),
        ("processor\t: 0\nflags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("processor\t: 0\nflags\t\t: fpu avx512f avx512_vnni avx512_bf16x\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", False),
        (None, False),
    ],
)
def test_processors(
    text: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(hardware, "CPU_INFO", tmp_path / "cpuinfo")
    cpu = SimpleNamespace(platform="cpu")
    assert hardware.multiplies_bfloat16(cpu) is expected  # type: ignore[arg-type]
