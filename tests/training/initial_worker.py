"""One of several processes that read a model for their shards: `initial_worker.py FOLDER PORT N I`.

Prints what it read and held, in bytes, and whether its shards are those of the whole.
"""

import json
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import numpy as np

from frame_jax.config.parallel import ParallelConfig
from frame_jax.models.hugging_face import tensors, weights
from frame_jax.parallel import processes
from frame_jax.parallel.sharding import make_mesh, param_shardings


def main(folder: str, port: str, count: str, index: str) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)
    processes.start(
        ParallelConfig(
            distributed=True,
            coordinator_address=f"localhost:{port}",
            num_processes=int(count),
            process_id=int(index),
        )
    )
    read, load = 0, tensors.Tensor.load

    class Counting:
        def __init__(self, stored: Any):
            self.stored = stored

        def __getitem__(self, part: Any) -> np.ndarray:
            nonlocal read
            values: np.ndarray = self.stored[part]
            read += values.nbytes
            return values

    def counting(self: Any, stored: Any, *rest: Any) -> np.ndarray:
        return load(self, Counting(stored), *rest)

    tensors.Tensor.load = counting  # type: ignore[method-assign]
    decoder = weights.read_decoder(Path(folder))
    mesh = make_mesh(ParallelConfig(fsdp=int(count)))
    shardings = param_shardings(decoder.axes(), decoder.shapes(), mesh)
    tracemalloc.start()
    params = jax.block_until_ready(weights.read_weights(Path(folder), decoder, shardings))
    peak, own = tracemalloc.get_traced_memory()[1], read
    whole = weights.read_weights(Path(folder), decoder)
    same = jax.tree.map(
        lambda leaf, all_of_it: all(
            np.array_equal(shard.data, all_of_it[shard.index]) for shard in leaf.addressable_shards
        ),
        *(params, whole),
    )
    print(json.dumps({"read": own, "peak": peak, "same": all(jax.tree.leaves(same))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
