"""The mesh, and what the partitioner makes of the loss over it."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

from frame_jax.config.parallel import ParallelConfig
from frame_jax.errors import UserError
from frame_jax.models.cross_entropy import cross_entropy
from frame_jax.parallel.sharding import batch_sharding, make_mesh, mesh_shape, partition_spec
from tests.optimized import compile_optimized


def test_the_axis_left_open_takes_the_devices_that_are_left() -> None:
    assert mesh_shape(ParallelConfig(), 8) == (1, 1, 8, 1, 1)
    assert mesh_shape(ParallelConfig(slice=2, tensor=2), 16) == (2, 1, 4, 1, 2)
    with pytest.raises(UserError, match="does not make the 8 devices"):
        mesh_shape(ParallelConfig(data=3), 8)


def test_an_axis_that_does_not_divide_stays_whole(use_devices: Callable[[int], None]) -> None:
    use_devices(8)
    mesh = make_mesh(ParallelConfig(slice=2, fsdp=2, tensor=2))
    assert tuple(partition_spec(("embed", "heads"), (64, 64), mesh)) == ("fsdp", "tensor")
    assert tuple(partition_spec(("embed", "heads"), (63, 64), mesh)) == (None, "tensor")
    assert partition_spec(("batch",), (4,), mesh)[0] == ("slice", "data", "fsdp", "expert")
    assert partition_spec(("batch",), (2,), mesh)[0] == ("slice", "data")
    matrices = ("expert", "embed", "mlp")
    assert tuple(partition_spec(matrices, (4, 64, 64), mesh)) == (
        ("expert", "fsdp"),
        None,
        "tensor",
    )
    assert tuple(partition_spec(matrices, (3, 64, 64), mesh)) == ("expert", "fsdp", "tensor")


def test_the_unembedding_derivative_crosses_devices_once(
    use_devices: Callable[[int], None],
) -> None:
    use_devices(8)
    B, T, D, V, chunks = 8, 64, 16, 96, 8
    mesh = make_mesh(ParallelConfig())

    def gradient(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.grad(lambda *a: cross_entropy(*a, chunks)[0], argnums=(0, 1))(*arrays)

    rows = batch_sharding(mesh)
    table = jax.sharding.NamedSharding(mesh, partition_spec(("vocab", "embed"), (V, D), mesh))
    arguments = [
        jax.ShapeDtypeStruct((B, T, D), jnp.float32, sharding=rows),
        jax.ShapeDtypeStruct((V, D), jnp.float32, sharding=table),
        jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=rows),
        jax.ShapeDtypeStruct((B, T), jnp.float32, sharding=rows),
    ]
    program = compile_optimized(jax.jit(gradient).lower(*arguments)).as_text()
    # A loop's body is one computation of the program's text, and the entry is another.
    bodies = [text for text in re.split(r"\n(?=%|ENTRY)", program) if not text.startswith("ENTRY")]
    assert "while(" in program
    collectives = r"(all-reduce|reduce-scatter|all-gather|all-to-all)(-start)?\("
    large = re.compile(rf"f32\[[\d,]*{D}\]\S* {collectives}|f32\[{V},[\d,]*\]\S* {collectives}")
    assert not any(large.search(text) for text in bodies)
