"""A config and devices in; does the step fit, what does it run and move, how fast might it be?

The real compilers run on any machine, for TPUs (`pip install libtpu`) and for NVIDIA GPUs
(`pip install "jax[cuda13]"`, of the version that JAX has), without the device:

    python tools/compile_ahead.py --config configs/frame_3b.yaml --topology v5p:4x4x4
    python tools/compile_ahead.py --config configs/frame_3b.yaml --topology h100:8x8

A topology of GPUs is hosts x GPUs of a host. Memory is the compiler's for the whole step, on GPUs
with what cuDNN takes beside it. Time on TPUs is the compiler's own estimate, extrapolated from
programs of two and four layers of each kind (see `estimate`). The compiler for GPUs gives none:
there, the program's operations are added up at the chip's peaks, which no chip reaches (see
`compiled_programs.roofline.estimate_step_time`). Both are for comparing programs; how long devices
wait for each other is in neither.
"""

from __future__ import annotations

import os

os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import math
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from compiled_programs.chips import CHIPS, GIB, Chip
from compiled_programs.hlo_program import HloProgram
from compiled_programs.roofline import (
    MachineLimits,
    RooflineEstimate,
    estimate_step_time,
    library_workspace,
)
from jax.experimental import topologies
from jax.sharding import Mesh, PartitionSpec

from frame_jax.config.file import make_parser, parse
from frame_jax.config.models import LayerSpec
from frame_jax.config.parallel import ParallelConfig
from frame_jax.config.run import RunConfig
from frame_jax.config.training import ReferenceConfig
from frame_jax.errors import UserError
from frame_jax.models.cross_entropy import chunk_count
from frame_jax.models.flops import PEAK_FLOPS, active_parameter_count, forward_flops_per_token
from frame_jax.models.transformer import Decoder
from frame_jax.parallel.sharding import (
    batch_sharding,
    data_parallel_size,
    make_mesh,
    param_shardings,
)
from frame_jax.planning.costs import planned_target, reference_decoder
from frame_jax.run.phases import REFERENCES
from frame_jax.run.special_tokens import SpecialTokens
from frame_jax.scoring.scorer import contexts_in_row, kept_dtype, score_rows
from frame_jax.training.optimizer import make_optimizer, optimizer_shardings
from frame_jax.training.train_step import TrainState, make_train_step

STEPS = 1000  # length of the schedule; the program's cost does not depend on it
# Of a GPU's memory, what JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
MEMORY_FRACTION = 0.75
# Memory of one device that a program may use, as the TPU compiler reports it, by `device_kind`.
HBM_GIB = {
    "TPU v4": 31.75,
    "TPU v5 lite": 15.75,
    "TPU v5": 95.74,
    "TPU v6 lite": 31.25,
    "TPU7x": 94.74,
}
Compiled = Any
Options = dict[str, Any] | None  # the compiler's


def arrays(shapes: Any, shardings: Any) -> Any:
    """Descriptions of arrays that live on devices which are not there."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def compile_train(
    config: RunConfig, mesh: Mesh, decoder: Decoder, options: Options = None
) -> Compiled:
    """The train step of the target model."""
    training = config.pretrain.training
    optimizer = make_optimizer(training, decoder, STEPS)
    params = param_shardings(decoder.axes(), decoder.shapes(), mesh)
    replicated = jax.sharding.NamedSharding(mesh, PartitionSpec())
    moments = optimizer_shardings(optimizer, decoder.shapes(), params, mesh)
    shardings = TrainState(replicated, params, moments)  # type: ignore[arg-type]
    shapes = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32),  # type: ignore[arg-type]
        decoder.shapes(),
        jax.eval_shape(optimizer.init, decoder.shapes()),
    )
    rows = jax.ShapeDtypeStruct(
        (training.batch_size, config.partition.rows.sequence_length + 1), jnp.int32
    )
    step = make_train_step(
        decoder,
        optimizer,
        SpecialTokens(1, 2, decoder.vocab_size),
        training,
        mesh,
        lambda step: jnp.float32(0),
    )
    return (
        jax.jit(step, out_shardings=(shardings, replicated), donate_argnums=0)
        .lower(arrays(shapes, shardings), arrays(rows, batch_sharding(mesh)))
        .compile(compiler_options=options)
    )


def compile_score(
    config: RunConfig, mesh: Mesh, *decoders: Decoder, options: Options = None
) -> Compiled:
    """The scoring step of both reference models, types of parameters and shapes as the scorer has
    them (`shard_params`)."""
    rows, length = scoring_shape(config)
    shardings = tuple(param_shardings(d.axes(), d.shapes(), mesh) for d in decoders)
    specs = jax.tree.map(lambda sharding: sharding.spec, shardings)
    params = tuple(jax.tree.map(functools.partial(kept, d), d.shapes(), d.axes()) for d in decoders)
    batch = batch_sharding(mesh)
    tokens = jax.ShapeDtypeStruct((rows * mesh.size, length), jnp.int32)
    score = jax.shard_map(
        functools.partial(score_rows, decoders, specs, loss_chunk=config.scoring.loss_chunk),
        mesh=mesh,
        in_specs=(specs, *(batch.spec,) * 4),
        out_specs=PartitionSpec(None, *batch.spec),
        check_vma=False,
    )
    lowered = jax.jit(score).lower(arrays(params, shardings), *[arrays(tokens, batch)] * 4)
    return lowered.compile(compiler_options=options)


def kept(decoder: Decoder, shape: Any, axes: tuple[str, ...]) -> Any:
    """A parameter as the scorer keeps it."""
    return shape.update(dtype=kept_dtype(decoder, axes))


def scoring_shape(config: RunConfig) -> tuple[int, int]:
    """Rows of a device and their tokens: contexts are joined as far as the scorer does."""
    rows, context = config.scoring.per_device_batch_size, config.scoring.context
    joined = contexts_in_row(rows, context)
    return rows // joined, joined * context


def hbm_gib(compiled: Compiled) -> float:
    """What the program needs of one device's memory."""
    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return (used + memory.generated_code_size_in_bytes - memory.alias_size_in_bytes) / GIB


def plan(config: RunConfig, step: str, mesh: Mesh) -> tuple[list[Decoder], Any, int, float]:
    """The models of a step, how to compile it, its tokens, and FLOPs for one of them."""
    if step == "train":
        training, length = config.pretrain.training, config.partition.rows.sequence_length
        target = planned_target(config)[0]
        decoder = dataclasses.replace(target, remat=training.remat)
        flops = 3 * forward_flops_per_token(target, length)
        return [decoder], compile_train, training.batch_size * length, flops
    decoders = references(config)
    rows, length = scoring_shape(config)
    flops = sum(forward_flops_per_token(decoder, length) for decoder in decoders)
    return decoders, compile_score, rows * mesh.size * length, flops


def references(config: RunConfig) -> list[Decoder]:
    """The models that score, by their checkpoints where these are there, else by `model`.

    Raises:
        UserError: if there are none, or nothing says what shape one has.
    """
    if config.scoring.table is not None:
        raise UserError("--step score: scores come from scoring.table, so no model scores here")
    dtype = "bfloat16" if config.scoring.compute_dtype == "auto" else config.scoring.compute_dtype
    found, unknown = [], ReferenceConfig()
    for name in REFERENCES:
        decoder, note = reference_decoder(config, name)
        model = getattr(config.reference, name).model
        if note and "assumed" in note and model == getattr(unknown, name).model:
            raise UserError(
                f"--step score: {note.partition(';')[0]}, and reference.{name}.model does not say "
                "its shape either: download the checkpoint, or set that"
            )
        found.append(dataclasses.replace(decoder, compute_dtype=dtype))
    return found


def shallow(decoder: Decoder, depth: dict[LayerSpec, int]) -> Decoder:
    """The same model with so many layers of each kind, unrolled."""
    layers = tuple(name for kind, count in depth.items() for name in ["+".join(kind)] * count)
    config = dataclasses.replace(decoder.config, layers=layers, num_layers=len(layers))  # type: ignore[arg-type]
    return dataclasses.replace(decoder, config=config, unroll=max(depth.values()))


def describe(topology: str, slices: int) -> tuple[list[Any], Chip | None, int]:
    """Devices that are not there, the chip if it is a GPU, and the devices of a host.

    Raises:
        UserError: for a topology that neither compiler knows, or a compiler that is not installed.
    """
    name, _, shape = topology.partition(":")
    gpu = CHIPS.get(name)
    if gpu is None:
        options = {"num_slices": slices} if slices > 1 else {}
        try:
            found = topologies.get_topology_desc(topology, "tpu", **options).devices
        except Exception as error:  # of libtpu, or that there is none
            raise UserError(
                f"--topology {topology}: {error}. Give a TPU as type:AxB[xC], e.g. v5p:4x4x4 "
                f"(needs pip install libtpu), or a GPU, {', '.join(CHIPS)}, as name:HOSTSxGPUS"
            ) from error
        return found, None, 0
    if not re.fullmatch(r"\d+(x\d+)?", shape):
        raise UserError(f"--topology {topology}: GPUs are {name}:GPUS or {name}:HOSTSxGPUS")
    hosts, host = map(int, ("1x" + shape).split("x")[-2:])
    try:
        found = topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            topology=f"{slices}x{hosts}x{host}",
            target_config=gpu.target_config(),
        ).devices
    except Exception as error:
        raise UserError(
            f'--topology {topology}: {error}. Compiling for GPUs needs pip install "jax[cuda13]=='
            f'{jax.__version__}"'
        ) from error
    return found, gpu, host


def check(
    config: RunConfig, topology: str, step: str, slices: int, seconds_too: bool = True
) -> dict[str, Any]:
    """Compiles and describes; out of memory is an answer. `seconds_too` is for TPUs, where they
    take several more compiles."""
    devices, gpu, host = describe(topology, slices)
    parallel = config.parallel
    if step == "score":
        parallel = ParallelConfig(data=-1, fsdp=config.scoring.fsdp)
    mesh = make_mesh(parallel, devices)
    decoders, compile_step, tokens, flops_per_token = plan(config, step, mesh)
    kind = devices[0].device_kind
    flops = flops_per_token * tokens / mesh.size
    fraction = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", MEMORY_FRACTION))
    available = gpu.memory_gib * fraction if gpu else HBM_GIB[kind]
    answer: dict[str, Any] = {
        "step": step,
        "topology": topology,
        "device_kind": kind,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "parameters": [decoder.parameter_count() for decoder in decoders],
        "active_parameters": [active_parameter_count(d) for d in decoders],
        "tokens_per_step": tokens,
        "model_flops_per_step_per_device": flops,
        "hbm_gib_available": round(available, 2),
        "versions": versions(gpu is not None),
    }
    try:
        compiled, text = compile_with_text(functools.partial(compile_step, config, mesh, *decoders))
    except jax.errors.JaxRuntimeError as error:
        # A kernel that asks for too much on-chip memory is a mistake of ours, on any device.
        if "RESOURCE_EXHAUSTED" not in str(error) or "memory space vmem" in str(error):
            raise
        used = re.search(r"Used ([\d.]+)G of", str(error))
        return answer | fit(step, float(used[1]) if used else None, available)
    program = HloProgram(text)
    extra = library_workspace(program) / GIB
    answer |= fit(step, round(hbm_gib(compiled) + extra, 2), available)
    answer["library_workspace_gib"] = round(extra, 2)
    answer["kernels"] = dict(program.kernels())
    peak = PEAK_FLOPS[kind]
    if gpu is None:
        # Its links have no limit here: the order of the program says what runs beside a transfer.
        idle = MachineLimits(peak, peak, math.inf, math.inf, mesh.size, mesh.size)
        answer["collectives"] = moved(estimate_step_time(program, idle))
        if not seconds_too:
            return answer
        if "windowed_dot_general" in text:
            return answer | {
                "no_estimate": "the compiler counts one turn of a product that gathers as it goes"
            }
        seconds, unknown = estimate(config, step, mesh, decoders, compile_step)
        return answer | {
            "estimated_step_seconds": seconds,
            "estimated_mfu": flops / seconds / peak,
            "operations_without_estimate": unknown,
        }
    machine = MachineLimits(peak, gpu.memory_bandwidth, gpu.link, gpu.network, mesh.size, host)
    bound = estimate_step_time(program, machine)
    return answer | {
        "collectives": moved(bound),
        "lower_bound_step_seconds": bound.seconds,
        "lower_bound_seconds_without_waiting": bound.busy_seconds,
        "upper_bound_mfu": flops / bound.seconds / peak,
        "matrix_flops_per_step_per_device": bound.matrix_flops,
        "memory_bytes_per_step_per_device": bound.memory_bytes,
    }


def versions(gpu: bool) -> dict[str, str]:
    """The packages that compiled, by name."""
    compilers = ("jax-cuda13-pjrt", "jax-cuda12-pjrt") if gpu else ("libtpu",)
    found = {}
    for name in ("jax", "jaxlib", *compilers):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def compile_with_text(compile_step: Callable[..., Compiled]) -> tuple[Compiled, str]:
    """A step's program, and its text as the compiler itself writes it: JAX cannot print some of the
    transfers in a program for TPUs."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = compile_step(options=options)
        written = Path(folder).glob("*after_optimizations.txt")
        return compiled, max(written, key=lambda path: path.stat().st_size).read_text()


def fit(step: str, used: float | None, available: float) -> dict[str, Any]:
    """Whether so many GiB are there, and what to change if they are not."""
    if used is not None and used <= available:
        spare = round(1 - used / available, 3)
        return {"fits": True, "hbm_gib_per_device": used, "spare_fraction": spare}
    change = "scoring.per_device_batch_size, scoring.loss_chunk, or raise scoring.fsdp"
    if step == "train":
        change = (
            "training.batch_size or loss_chunk, or raise training.gradient_accumulation_steps, or "
            "set training.remat to minimal or full"
        )
    return {
        "fits": False,
        "hbm_gib_per_device": used,
        "change": f"out of device memory: lower {change}, or use more chips",
    }


def moved(bound: RooflineEstimate) -> dict[str, Any]:
    """What the collectives move, by kind."""
    return {
        kind: {
            "gib_received_per_device": round(found.bytes / GIB, 3),
            "fraction_beside_work": round(found.bytes_hidden / found.bytes, 3),
        }
        for kind, found in bound.transfers.items()
        if found.bytes
    }


def table(answer: dict[str, Any]) -> str:
    """The answer, one line a thing."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in answer["mesh"].items() if size > 1)
    used = answer["hbm_gib_per_device"]
    memory = f"{'?' if used is None else used} of {answer['hbm_gib_available']} GiB a device"
    verdict = f"fits, {answer['spare_fraction']:.0%} to spare" if answer["fits"] else "DOES NOT FIT"
    lines = {
        "step": f"{answer['step']}, {answer['tokens_per_step']:,} tokens",
        "devices": f"{answer['devices']} x {answer['device_kind']} ({mesh or 'one'})",
        "memory": f"{memory}: {verdict}",
    }
    if not answer["fits"]:
        lines["change"] = answer["change"]
    if answer.get("library_workspace_gib"):
        lines["memory of cuDNN"] = f"{answer['library_workspace_gib']} GiB of these, by its source"
    if kernels := answer.get("kernels"):
        lines["kernels"] = ", ".join(f"{count} {name}" for name, count in sorted(kernels.items()))
    for kind, found in answer.get("collectives", {}).items():
        lines[kind] = (
            f"{found['gib_received_per_device']:.3f} GiB received a device, "
            f"{found['fraction_beside_work']:.0%} of it beside work"
        )
    if "estimated_step_seconds" in answer:
        lines["time"] = (
            f"{answer['estimated_step_seconds']:.3f} s a step by the compiler's estimate "
            f"(MFU {answer['estimated_mfu']:.0%}; "
            f"{answer['operations_without_estimate']} operations not estimated)"
        )
    if "no_estimate" in answer:
        lines["time"] = f"no estimate: {answer['no_estimate']}"
    if seconds := answer.get("lower_bound_step_seconds"):
        lines["time"] = (
            f"at least {seconds:.3f} s a step, every operation at the chip's peaks, "
            f"{seconds - answer['lower_bound_seconds_without_waiting']:.3f} s of it waiting for "
            f"transfers (MFU at most {answer['upper_bound_mfu']:.0%}): a lower bound, which no "
            "device reaches"
        )
    if "versions" in answer:
        lines["compiled"] = ", ".join(f"{name} {x}" for name, x in answer["versions"].items())
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items())


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

    def cost(config: RunConfig, depths: list[dict[LayerSpec, int]]) -> tuple[float, int]:
        models = [shallow(decoder, depth) for decoder, depth in zip(decoders, depths, strict=True)]
        return split_cost(compile_step(config, mesh, *models).cost_analysis()["optimal_seconds"])

    def seconds(config: RunConfig, depths: list[dict[LayerSpec, int]]) -> float:
        return cost(config, depths)[0]

    two = [dict.fromkeys(decoder.config.layer_specs, 2) for decoder in decoders]
    base, unknown = cost(config, two)
    total = base
    rows, length = halved_length(config, step)
    wide = seconds(rows, two) if any(d.config.has("mamba2") for d in decoders) else 0.0
    for i, decoder in enumerate(decoders):
        for kind, count in Counter(decoder.config.layer_specs).items():
            deeper = [*two[:i], two[i] | {kind: 4}, *two[i + 1 :]]
            layer = (seconds(config, deeper) - base) / 2
            total += (count - 2) * layer
            if kind.mixer == "mamba2":
                chunk = (seconds(rows, deeper) - wide) / 2 - layer
                total += count * (2 * -(-length // decoder.config.mamba2.chunk_size) - 1) * chunk
    pieces, halved = loss_pieces(config, step, mesh)
    if pieces > 1:
        total += (pieces - 1) * 2 * (base - seconds(halved, two))
    return total * (
        config.pretrain.training.gradient_accumulation_steps if step == "train" else 1
    ), unknown


def halved_length(config: RunConfig, step: str) -> tuple[RunConfig, int]:
    """The config with twice as many rows of half the length, and that length."""
    if step == "score":
        scoring = config.scoring
        length = scoring.context // 2
        more = dataclasses.replace(
            scoring, context=length, per_device_batch_size=2 * scoring.per_device_batch_size
        )
        return dataclasses.replace(config, scoring=more), length
    rows, training = config.partition.rows, config.pretrain.training
    length = rows.sequence_length // 2
    partition = dataclasses.replace(
        config.partition, rows=dataclasses.replace(rows, sequence_length=length)
    )
    pretrain = dataclasses.replace(
        config.pretrain, training=dataclasses.replace(training, batch_size=2 * training.batch_size)
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
        pieces = chunk_count(*scoring_shape(config), scoring.loss_chunk)
        scoring = dataclasses.replace(scoring, loss_chunk=scoring.loss_chunk // 2)
        return pieces, dataclasses.replace(config, scoring=scoring)
    training, length = config.pretrain.training, config.partition.rows.sequence_length
    rows = training.batch_size // (data_parallel_size(mesh) * training.gradient_accumulation_steps)
    pieces = chunk_count(max(1, rows), length, training.loss_chunk)
    training = dataclasses.replace(training, loss_chunk=training.loss_chunk // 2)
    pretrain = dataclasses.replace(config.pretrain, training=training)
    return pieces, dataclasses.replace(config, pretrain=pretrain)


def main() -> None:
    parser = make_parser(description=__doc__)
    parser.add_argument(
        "--topology",
        default="v5p:4x4x4",
        help=f"TPUs as type:AxB[xC], e.g. v6e:16x16; {', '.join(CHIPS)} as name:HOSTSxGPUS",
    )
    parser.add_argument("--slices", type=int, default=1, help="pod slices of that topology")
    parser.add_argument("--step", choices=("train", "score"), default="train")
    parser.add_argument(
        "--no_estimate", action="store_true", help="no seconds on TPUs, which take most of the time"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    try:
        config, options = parse(sys.argv[1:], parser)
        topology, step, slices = options["topology"], options["step"], options["slices"]
        answer = check(config, topology, step, slices, not options["no_estimate"])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(answer) if options["json"] else table(answer))


if __name__ == "__main__":
    main()
