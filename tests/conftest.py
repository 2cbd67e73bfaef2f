"""Shared by all tests: JAX on the CPU, with as many virtual devices as a test asks for."""

import os
from collections.abc import Callable, Iterator

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest
from jax.extend import backend


def _use_devices(count: int) -> None:
    backend.clear_backends()
    jax.clear_caches()
    jax.config.update("jax_num_cpu_devices", count)


@pytest.fixture
def use_devices() -> Iterator[Callable[[int], None]]:
    """`use_devices(n)` restarts JAX with n virtual CPU devices; arrays made before are lost."""
    yield _use_devices
    _use_devices(1)
