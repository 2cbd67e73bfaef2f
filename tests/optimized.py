"""Programs as users have them, for tests of what the compiler makes of one."""

import os

from jax.stages import Compiled, Lowered

# What tests/conftest.py turns off.
DEFAULTS = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}


def compile_optimized(lowered: Lowered) -> Compiled:
    """Compiles with the defaults of those flags that are set."""
    flags = os.environ.get("XLA_FLAGS", "")
    return lowered.compile({name: value for name, value in DEFAULTS.items() if name in flags})
