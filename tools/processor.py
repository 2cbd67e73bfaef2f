"""How the records of benchmarks describe this machine's processor."""

from __future__ import annotations

import os
import platform

from frame_jax.parallel.hardware import cpu_info


def processor() -> str:
    """Describes this machine's processor, with the features that multiply matrices fast."""
    features = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    known = [feature for feature in features if feature in cpu_info("flags").split()]
    name = cpu_info("model name") or platform.machine()
    return ", ".join([name, f"{os.cpu_count()} cores", *known])
