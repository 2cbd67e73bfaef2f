"""Capabilities of devices that JAX does not report."""

import re
from pathlib import Path

import jax

AMPERE = 8  # the first compute capability with bfloat16
CPU_INFO = Path("/proc/cpuinfo")


def multiplies_bfloat16(device: jax.Device) -> bool:
    """Whether the device multiplies bfloat16 in hardware: TPUs, NVIDIA GPUs since Ampere, and x86
    with AVX512-BF16 or AMX do."""
    if device.platform == "tpu":
        return True
    if device.platform == "gpu":
        number = re.match(r"\d+", str(getattr(device, "compute_capability", "")))
        return number is not None and int(number[0]) >= AMPERE
    known = {"avx512_bf16", "amx_bf16"} & set(cpu_info("flags").split())
    return device.platform == "cpu" and bool(known)


def cpu_info(key: str) -> str:
    """What Linux says of this processor under a key; empty elsewhere."""
    text = CPU_INFO.read_text("utf-8") if CPU_INFO.exists() else ""
    found = re.search(rf"^{key}\s*:\s*(.*)$", text, re.M)
    return found[1] if found else ""
