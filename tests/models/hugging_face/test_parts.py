"""A part of a parameter, read for one device, is that part of the whole, whatever the family."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from frame_jax.config.models import ModelConfig
from frame_jax.config.parallel import ParallelConfig
from frame_jax.models.hugging_face.export import model_config, write_weights
from frame_jax.models.hugging_face.weights import read_weights
from frame_jax.models.transformer import Decoder
from frame_jax.parallel.sharding import make_mesh, param_shardings
from frame_jax.run.directory import write_json
from tests.models.hugging_face.test_config import COMPUTED, SMALL

NAMES = (
    *("plain", "biases", "LayerNorm", "LayerNorm, an output", "experts", "a shared expert"),
    *("Mamba-2", "a hybrid with experts"),
)
MESHES = (ParallelConfig(fsdp=4), ParallelConfig(fsdp=2, tensor=2), ParallelConfig(expert=4))


@pytest.mark.parametrize("name", NAMES)
def test_shards_are_parts_of_the_whole(name: str, tmp_path: Path, use_devices) -> None:
    use_devices(4)
    shape = ModelConfig(**SMALL | COMPUTED[name][1])
    experts = dataclasses.replace(shape.experts, num_experts=4)
    decoder = Decoder(dataclasses.replace(shape, experts=experts), 12)
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: random.normal(size=leaf.shape).astype(np.float32), decoder.shapes()
    )
    write_json(tmp_path / "config.json", model_config(decoder, 0, 1, 64))
    write_weights(tmp_path, decoder, params, 3_000)
    whole = read_weights(tmp_path, decoder)
    jax.tree.map(np.testing.assert_array_equal, whole, params)
    split = set()
    for parallel in MESHES:
        mesh = make_mesh(parallel)
        shardings = param_shardings(decoder.axes(), decoder.shapes(), mesh)
        placed = read_weights(tmp_path, decoder, shardings)
        for leaf, target, expected in zip(
            *(jax.tree.leaves(tree) for tree in (placed, shardings, whole)), strict=True
        ):
            assert leaf.sharding == target and leaf.dtype == np.float32
            for shard in leaf.addressable_shards:
                np.testing.assert_array_equal(shard.data, expected[shard.index])
            split |= set(target.spec)
    assert {"fsdp", "tensor"} <= split
