"""The device mesh and the one table that maps logical axes to its axes.

Mesh axes: `data` (replicas), `fsdp` (shards of every parameter), `tensor` (shards of heads and
feed-forward columns). The batch is split over `data` and `fsdp`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from frame_jax.config import ParallelConfig
from frame_jax.errors import UserError

RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "layer": None,
    "norm": None,
}


def mesh_shape(config: ParallelConfig, devices: int) -> tuple[int, int, int]:
    """Sizes of `data`, `fsdp` and `tensor`, with -1 replaced by the devices that are left.

    Raises:
        UserError: if the sizes do not multiply to the number of devices.
    """
    sizes = [config.data, config.fsdp, config.tensor]
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if math.prod(sizes) != devices:
        raise UserError(
            f"parallel: data={config.data} x fsdp={config.fsdp} x tensor={config.tensor} does not "
            f"make the {devices} devices there are; change one, or set one of them to -1"
        )
    data, fsdp, tensor = sizes
    return data, fsdp, tensor


def make_mesh(config: ParallelConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (default: all devices of all processes)."""
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    return jax.make_mesh(
        shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices
    )


def spec(axes: Sequence[str], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    """Mesh axes for an array's logical axes; an axis that does not divide evenly is not split."""
    names = []
    for axis, size in zip(axes, shape, strict=True):
        mesh_axes = RULES[axis]
        group = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ()
        ways = math.prod(mesh.shape[name] for name in group)
        names.append(mesh_axes if size % ways == 0 else None)
    return PartitionSpec(*names)


def param_shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """`NamedSharding`s for a tree of parameters.

    Args:
        axes: Tree of tuples of logical axis names, as `Decoder.axes()` gives it.
        shapes: The same tree with `jax.ShapeDtypeStruct` leaves.
        mesh: The mesh.
    """
    return jax.tree.map(
        lambda shape, names: NamedSharding(mesh, spec(names, shape.shape, mesh)), shapes, axes
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over the batch axes, whole along the sequence."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def batch_ways(mesh: Mesh) -> int:
    """Number of pieces the rows of a global batch are split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def local_rows(sharding: NamedSharding, shape: tuple[int, ...]) -> np.ndarray:
    """Rows of a global array of `shape` that this process's devices hold: sorted int64 indices."""
    slices = sharding.addressable_devices_indices_map(shape).values()
    rows: set[int] = set()
    for index in slices:
        assert index is not None
        rows.update(range(*index[0].indices(shape[0])))
    return np.array(sorted(rows), np.int64)
