"""A config and a TPU topology in, one JSON object out: does the step fit, and how fast might it be?

The real TPU compiler runs on any machine (`pip install libtpu`), no TPU needed:

    python tools/compile_for_tpu.py --config configs/frame_3b.yaml --topology v5p:4x4x4

Memory is the compiler's for the whole step. Time is the compiler's own estimate, extrapolated from
programs of two and four layers of each kind (see `estimate`). It is for comparing programs; how
long chips wait for each other is not in it.
"""

from __future__ import annotations

import os

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

import dataclasses
import functools
import json
import math
import re
import sys
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, PartitionSpec

from frame_jax.config.file import make_parser, parse
from frame_jax.config.models import Kind
from frame_jax.config.parallel import ParallelConfig
from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError
from frame_jax.models.cross_entropy import chunk_count
from frame_jax.models.flops import (
    HBM_GIB,
    PEAK_FLOPS,
    active_parameter_count,
    forward_flops_per_token,
)
from frame_jax.models.functional import Decoder
from frame_jax.parallel.sharding import batch_sharding, batch_ways, make_mesh, param_shardings
from frame_jax.scoring.step import score_rows
from frame_jax.training.optimizer import make_optimizer, optimizer_shardings
from frame_jax.training.runs import VOCAB_MULTIPLE
from frame_jax.training.step import Specials, TrainState, make_train_step

STEPS = 1000  # length of the schedule; the program's cost does not depend on it
GIB = 2**30
Compiled = Any


def arrays(shapes: Any, shardings: Any) -> Any:
    """Descriptions of arrays that live on devices which are not there."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def compile_train(config: RunConfig, mesh: Mesh, decoder: Decoder) -> Compiled:
    """The train step of the target model."""
    training = config.pretrain.training
    optimizer = make_optimizer(training, decoder, STEPS)
    params = param_shardings(decoder.axes(), decoder.shapes(), mesh)
    replicated = jax.sharding.NamedSharding(mesh, PartitionSpec())
    moments = optimizer_shardings(optimizer, decoder.shapes(), params, mesh)
    shardings = TrainState(replicated, params, moments)
    shapes = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32),
        decoder.shapes(),
        jax.eval_shape(optimizer.init, decoder.shapes()),
    )
    rows = jax.ShapeDtypeStruct(
        (training.batch_rows, config.partition.rows.sequence_length + 1), jnp.int32
    )
    step = make_train_step(
        decoder, optimizer, Specials(1, 2), training, mesh, lambda step: jnp.float32(0)
    )
    return (
        jax.jit(step, out_shardings=(shardings, replicated), donate_argnums=0)
        .lower(arrays(shapes, shardings), arrays(rows, batch_sharding(mesh)))
        .compile()
    )


def compile_score(config: RunConfig, mesh: Mesh, *decoders: Decoder) -> Compiled:
    """The scoring step of both reference models, parameters in bfloat16."""
    scoring, context = config.scoring, config.scoring.context
    shapes = tuple(decoder.shapes() for decoder in decoders)
    shardings = tuple(param_shardings(d.axes(), d.shapes(), mesh) for d in decoders)
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
    params = jax.tree.map(lambda x: x.update(dtype=jnp.bfloat16), shapes)
    batch = batch_sharding(mesh)
    tokens = jax.ShapeDtypeStruct((scoring.rows_per_device * mesh.size, context), jnp.int32)
    score = jax.shard_map(
        functools.partial(score_rows, decoders, specs, loss_chunk=scoring.loss_chunk),
        mesh=mesh,
        in_specs=(specs, *(batch.spec,) * 4),
        out_specs=PartitionSpec(None, *batch.spec),
        check_vma=False,
    )
    return jax.jit(score).lower(arrays(params, shardings), *[arrays(tokens, batch)] * 4).compile()


def hbm_gib(compiled: Compiled) -> float:
    """What the program needs of one device's memory."""
    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return (used + memory.generated_code_size_in_bytes - memory.alias_size_in_bytes) / GIB


def plan(config: RunConfig, step: str, mesh: Mesh) -> tuple[list[Decoder], Any, int, float]:
    """The models of a step, how to compile it, its tokens, and FLOPs for one of them."""
    vocab_size = -(-config.tokenizer.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    if step == "train":
        training, length = config.pretrain.training, config.partition.rows.sequence_length
        decoder = Decoder(config.pretrain.model, vocab_size, remat=training.remat)
        flops = 3 * forward_flops_per_token(config.pretrain.model, vocab_size, length)
        return [decoder], compile_train, training.batch_rows * length, flops
    context = config.scoring.context
    models = [config.reference.weak.model, config.reference.strong.model]
    flops = sum(forward_flops_per_token(model, vocab_size, context) for model in models)
    tokens = config.scoring.rows_per_device * mesh.size * context
    return [Decoder(model, vocab_size) for model in models], compile_score, tokens, flops


def shallow(decoder: Decoder, depth: dict[Kind, int]) -> Decoder:
    """The same model with so many layers of each kind, unrolled."""
    layers = tuple(name for kind, count in depth.items() for name in ["+".join(kind)] * count)
    config = dataclasses.replace(decoder.config, layers=layers, num_layers=len(layers))
    return dataclasses.replace(decoder, config=config, unroll=max(depth.values()))


def check(config: RunConfig, topology: str, step: str, slices: int) -> dict[str, Any]:
    """Compiles and describes; out of memory is an answer."""
    options = {"num_slices": slices} if slices > 1 else {}
    devices = topologies.get_topology_desc(topology, "tpu", **options).devices
    parallel = config.parallel
    if step == "score":
        parallel = ParallelConfig(data=-1, fsdp=config.scoring.fsdp)
    mesh = make_mesh(parallel, devices)
    decoders, compile_step, tokens, flops_per_token = plan(config, step, mesh)
    kind = devices[0].device_kind
    flops = flops_per_token * tokens / mesh.size
    answer: dict[str, Any] = {
        "step": step,
        "topology": topology,
        "device_kind": kind,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "parameters": [decoder.parameter_count() for decoder in decoders],
        "active_parameters": [active_parameter_count(d.config, d.vocab_size) for d in decoders],
        "tokens_per_step": tokens,
        "model_flops_per_step_per_device": flops,
        "hbm_gib_available": HBM_GIB[kind],
    }
    try:
        compiled = compile_step(config, mesh, *decoders)
    except jax.errors.JaxRuntimeError as error:
        # A kernel that asks for too much on-chip memory is a mistake of ours, on any device.
        if "RESOURCE_EXHAUSTED" not in str(error) or "memory space vmem" in str(error):
            raise
        used = re.search(r"Used ([\d.]+)G of", str(error))
        change = "scoring.rows_per_device, scoring.loss_chunk, or raise scoring.fsdp"
        if step == "train":
            change = "training.batch_rows or loss_chunk, or raise training.accumulate, or set "
            change += "training.remat to minimal or full"
        return answer | {
            "fits": False,
            "hbm_gib_per_device": float(used[1]) if used else None,
            "change": f"out of device memory: lower {change}, or use more chips",
        }
    answer |= {"fits": True, "hbm_gib_per_device": round(hbm_gib(compiled), 2)}
    seconds, unknown = estimate(config, step, mesh, decoders, compile_step)
    return answer | {
        "estimated_step_seconds": seconds,
        "estimated_mfu": flops / seconds / PEAK_FLOPS[kind],
        "operations_without_estimate": unknown,
    }


def estimate(
    config: RunConfig, step: str, mesh: Mesh, decoders: list[Decoder], compile_step: Any
) -> tuple[float, int]:
    """The compiler's seconds for a step, from programs without long loops, and how many operations
    of the shallowest it has no estimate for.

    It counts the body of a loop once. So layers are unrolled, two of each kind and then four of
    one, and the line is extended to the model's depth; and a piece of the loss costs twice what a
    step gets cheaper by when pieces are halved. In a Mamba-2 layer, a chunk costs what the layer
    gets dearer by when there are twice as many rows of half the length: one chunk is counted of
    either, and of nothing else is there more. Accumulation repeats all of it.
    """

    def cost(config: RunConfig, depths: list[dict[Kind, int]]) -> tuple[float, int]:
        models = [shallow(decoder, depth) for decoder, depth in zip(decoders, depths, strict=True)]
        return split_cost(compile_step(config, mesh, *models).cost_analysis()["optimal_seconds"])

    def seconds(config: RunConfig, depths: list[dict[Kind, int]]) -> float:
        return cost(config, depths)[0]

    two = [dict.fromkeys(decoder.config.kinds, 2) for decoder in decoders]
    base, unknown = cost(config, two)
    total = base
    rows, length = halved_length(config, step)
    wide = seconds(rows, two) if any(d.config.has("mamba2") for d in decoders) else 0.0
    for i, decoder in enumerate(decoders):
        for kind, count in Counter(decoder.config.kinds).items():
            deeper = [*two[:i], two[i] | {kind: 4}, *two[i + 1 :]]
            layer = (seconds(config, deeper) - base) / 2
            total += (count - 2) * layer
            if kind.mixer == "mamba2":
                chunk = (seconds(rows, deeper) - wide) / 2 - layer
                total += count * (2 * -(-length // decoder.config.mamba2.chunk) - 1) * chunk
    pieces, halved = loss_pieces(config, step, mesh)
    if pieces > 1:
        total += (pieces - 1) * 2 * (base - seconds(halved, two))
    return total * (config.pretrain.training.accumulate if step == "train" else 1), unknown


def halved_length(config: RunConfig, step: str) -> tuple[RunConfig, int]:
    """The config with twice as many rows of half the length, and that length."""
    if step == "score":
        scoring = config.scoring
        length = scoring.context // 2
        more = dataclasses.replace(
            scoring, context=length, rows_per_device=2 * scoring.rows_per_device
        )
        return dataclasses.replace(config, scoring=more), length
    rows, training = config.partition.rows, config.pretrain.training
    length = rows.sequence_length // 2
    partition = dataclasses.replace(
        config.partition, rows=dataclasses.replace(rows, sequence_length=length)
    )
    pretrain = dataclasses.replace(
        config.pretrain, training=dataclasses.replace(training, batch_rows=2 * training.batch_rows)
    )
    return dataclasses.replace(config, partition=partition, pretrain=pretrain), length


def split_cost(optimal_seconds: float) -> tuple[float, int]:
    """What the compiler estimates, and how many operations it has no estimate for.

    Each of those (some transfers, on v6e) counts as -1 second, and two to four layers take less
    than one.

    >>> split_cost(-2.75)
    (0.25, 3)
    >>> split_cost(1.5)
    (1.5, 0)
    """
    unknown = max(0, -math.floor(optimal_seconds))
    return optimal_seconds + unknown, unknown


def loss_pieces(config: RunConfig, step: str, mesh: Mesh) -> tuple[int, RunConfig]:
    """Pieces in which a device makes its logits, and the config with twice as many."""
    if step == "score":
        scoring = config.scoring
        pieces = chunk_count(scoring.rows_per_device, scoring.context, scoring.loss_chunk)
        finer = dataclasses.replace(scoring, loss_chunk=scoring.loss_chunk // 2)
        return pieces, dataclasses.replace(config, scoring=finer)
    training, length = config.pretrain.training, config.partition.rows.sequence_length
    rows = training.batch_rows // (batch_ways(mesh) * training.accumulate)
    pieces = chunk_count(max(1, rows), length, training.loss_chunk)
    finer = dataclasses.replace(training, loss_chunk=training.loss_chunk // 2)
    pretrain = dataclasses.replace(config.pretrain, training=finer)
    return pieces, dataclasses.replace(config, pretrain=pretrain)


def main() -> None:
    parser = make_parser(description=__doc__)
    parser.add_argument("--topology", default="v5p:4x4x4", help="type:AxB[xC], e.g. v6e:16x16")
    parser.add_argument("--slices", type=int, default=1, help="pod slices of that topology")
    parser.add_argument("--step", choices=("train", "score"), default="train")
    try:
        config, options = parse(sys.argv[1:], parser)
        print(json.dumps(check(config, options["topology"], options["step"], options["slices"])))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
