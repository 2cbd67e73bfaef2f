"""The device mesh and the one table that maps logical axes to its axes.

Mesh axes, which `ParallelConfig` describes, go from the slowest network to the fastest. The batch
is split over all but the last.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from frame_jax.config.parallel import ParallelConfig
from frame_jax.errors import UserError

AXES = ("slice", "data", "fsdp", "expert", "tensor")
RULES: dict[str | None, tuple[str, ...]] = {
    "batch": ("slice", "data", "fsdp", "expert"),
    "embed": ("fsdp",),
    "expert": ("expert", "fsdp"),  # whole matrices are gathered without a new layout
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    **dict.fromkeys(("layer", "norm", "conv", "router", "state", None), ()),  # never split
}


def mesh_shape(config: ParallelConfig, devices: int) -> tuple[int, ...]:
    """The sizes of the axes, in the order of AXES; -1 becomes the number of devices left.

    Raises:
        UserError: if the sizes do not multiply to the number of devices.
    """
    sizes = [getattr(config, axis) for axis in AXES]
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if math.prod(sizes) != devices:
        asked = " x ".join(f"{axis}={getattr(config, axis)}" for axis in AXES)
        raise UserError(
            f"parallel: {asked} does not make the {devices} devices there are; change a size, or "
            "set one to -1"
        )
    return tuple(sizes)


def make_mesh(config: ParallelConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (default: all devices of all processes).

    Cores of a CPU share its memory: where nothing else is asked for, they hold replicas.
    """
    devices = jax.devices() if devices is None else devices
    if devices[0].platform == "cpu" and (config.data, config.fsdp) == (1, -1):
        config = dataclasses.replace(config, data=-1, fsdp=1)
    shape, auto = mesh_shape(config, len(devices)), (AxisType.Auto,) * len(AXES)
    if len({getattr(device, "slice_index", 0) for device in devices}) == 1:
        return jax.make_mesh(shape, AXES, axis_types=auto, devices=devices)
    grid = mesh_utils.create_hybrid_device_mesh((1, *shape[1:]), (shape[0], 1, 1, 1, 1), devices)
    return Mesh(grid, AXES, axis_types=auto)


def context_mesh() -> AbstractMesh | None:
    """The mesh that the function being traced runs on (`jax.sharding.use_abstract_mesh`)."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def platform() -> str:
    """The kind of device that the function being traced runs on: `cpu`, `gpu` or `tpu`."""
    mesh = context_mesh()
    return mesh.abstract_device.platform if mesh else jax.default_backend()


def device_kind() -> str:
    """JAX's name of that device, e.g. `NVIDIA H100 80GB HBM3`."""
    mesh = context_mesh()
    return mesh.abstract_device.device_kind if mesh else jax.devices()[0].device_kind


def constrain_sharding(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains how `x`, with these logical axes, is split over the mesh.

    Returns `x` as it is without a mesh, or inside `shard_map`.

    Left alone, the partitioner may spread activations like the parameters they meet, and gather
    the batch on every device.
    """
    mesh = context_mesh()
    if mesh is None or mesh.are_all_axes_manual:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes, x.shape, mesh))


def partition_spec(
    axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """Mesh axes for an array's logical axes: of those in RULES, as many from the first as its size
    divides by and no earlier axis has taken."""
    names: list[tuple[str, ...] | None] = []
    for axis, size in zip(axes, shape, strict=True):
        group = [name for name in RULES[axis] if all(name not in (taken or ()) for taken in names)]
        while size % math.prod(mesh.shape[name] for name in group):
            group.pop()
        names.append(tuple(group) or None)
    return PartitionSpec(*names)


def param_shardings(axes: Any, shapes: Any, mesh: Mesh) -> Any:
    """`NamedSharding`s for a tree of parameters.

    `axes` is as `Decoder.axes()` gives it, `shapes` the same tree of `jax.ShapeDtypeStruct`.
    """
    return jax.tree.map(
        lambda shape, names: NamedSharding(mesh, partition_spec(names, shape.shape, mesh)),
        shapes,
        axes,
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows split over the batch axes, whole along the sequence."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def data_parallel_size(mesh: Mesh | AbstractMesh) -> int:
    """The number of parts that the rows of a global batch are split into."""
    return math.prod(mesh.shape[axis] for axis in AXES if axis != "tensor")


def local_rows(sharding: NamedSharding, shape: tuple[int, ...]) -> np.ndarray:
    """The rows of a global array of `shape` that this process's devices hold: sorted, int64."""
    rows, indices = np.arange(shape[0]), sharding.addressable_devices_indices_map(shape).values()
    return np.unique(np.concatenate([rows[index[0]] for index in indices if index is not None]))
