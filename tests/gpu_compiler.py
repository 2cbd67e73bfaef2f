"""NVIDIA GPUs that are not there, for tests of what is compiled for them."""

import importlib.util
from typing import Any

import jax
import pytest
from compiled_programs.chips import CHIPS, Chip
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

needs_gpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs XLA's compiler for GPUs"
)


def gpus(chip: Chip, count: int) -> list[jax.Device]:
    """So many devices of one host."""
    return topologies.get_topology_desc(
        platform="cuda",
        topology_name="",
        topology=f"1x1x{count}",
        target_config=chip.target_config(),
    ).devices


def compiled_for(chip: str, function: Any, *arrays: tuple[tuple[int, ...], str]) -> Any:
    """A function compiled for one GPU, by its name in `CHIPS`, and arrays of these shapes and
    dtypes."""
    there = SingleDeviceSharding(gpus(CHIPS[chip], 1)[0])
    described = (jax.ShapeDtypeStruct(*array, sharding=there) for array in arrays)
    return jax.jit(function).lower(*described).compile()
