"""Shared by all tests: JAX on the CPU, with as many virtual devices as a test asks for."""

import os
from collections.abc import Callable, Iterator

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest
from jax.extend import backend

from frame_jax.errors import log_to_stderr

log_to_stderr()  # tests read what programs show


def _use_devices(count: int) -> None:
    # XLA takes as many threads as there are cores. A device that waits for others inside a
    # collective holds one, and with several collectives under way none may be left to end them.
    os.environ.pop("NPROC", None)
    if count > 1:
        os.environ["NPROC"] = str(4 * count)
    backend.clear_backends()
    jax.clear_caches()
    jax.config.update("jax_num_cpu_devices", count)


@pytest.fixture
def use_devices() -> Iterator[Callable[[int], None]]:
    """`use_devices(n)` restarts JAX with n virtual CPU devices; arrays made before are lost."""
    yield _use_devices
    _use_devices(1)
