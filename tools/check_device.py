"""Is this accelerator right, and how fast is it? One command for an hour with one; one JSON line a
check.

    python tools/check_device.py                  # everything, in less than ten minutes
    python tools/check_device.py --only kernels   # or some of: kernels step scoring resume ...

Each group of checks is a process of its own with a time limit, so that none takes another's memory
and none that hangs takes the hour. `ok` compares `value` with `limit`; `kernels` names those that
the compiled program calls, beside what the compiler made itself; a line with `skipped` says why
there is nothing to compare. The exit code is 1 if a check failed. On a CPU, or with `--small`,
shapes are tiny and speeds mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import importlib.util
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from compiled_programs.chips import CHIPS

from frame_jax import checkpoints
from frame_jax.config.curriculum import CurriculumConfig
from frame_jax.config.file import parse
from frame_jax.config.models import ExpertsConfig, Mamba2Config, ModelConfig
from frame_jax.config.parallel import ParallelConfig
from frame_jax.config.quadrants import AxesConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.config.training import TrainingConfig
from frame_jax.curriculum.presets import expand_curriculum
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.curriculum.stages import resolve_curriculum
from frame_jax.models.attention import attention
from frame_jax.models.cross_entropy import cross_entropy
from frame_jax.models.flops import (
    forward_flops_per_token,
    model_flops_utilisation,
    training_flops_per_token,
)
from frame_jax.models.grouped_product import grouped_matmul, rows_per_tile
from frame_jax.models.hugging_face.export import model_config
from frame_jax.models.ssd import ssd
from frame_jax.models.transformer import Decoder
from frame_jax.parallel.sharding import batch_sharding, make_mesh, param_shardings
from frame_jax.records import write_tokens
from frame_jax.run.directory import write_json
from frame_jax.run.special_tokens import SpecialTokens
from frame_jax.scoring.documents import score_documents
from frame_jax.scoring.scorer import Scorer
from frame_jax.training.optimizer import make_optimizer
from frame_jax.training.phases import padded_vocab_size
from frame_jax.training.train_step import (
    TrainState,
    loss_fn,
    make_lm_batch,
    make_train_step,
)
from frame_jax.training.trainer import train
from frame_jax.training.training_job import TrainingJob

ROOT = Path(__file__).parents[1]
TOTAL_SECONDS = 570
BOS, EOS = 0, 1
# Relative errors. One rounding to bfloat16 is 0.004 at most; what is summed over is in float32.
LIMITS = {"bfloat16": 0.02, "float32": 1e-4}
STEP_LIMITS = {"bfloat16": 0.05, "float32": 3e-4}
SCORE_LIMITS = {"bfloat16": 1e-3, "float32": 1e-5}  # docs/scoring.md, with room for other hardware
STEP = 1e-5  # of the differences that derivatives are compared with
STEP_TOKENS = 32768  # of a training step on one device, where they fit
MEASURED_SECONDS = 5.0  # of each speed
ESTIMATE_SECONDS = 30
# What speeds are measured of: the target models of these configs, with these settings.
MODELS: dict[str, tuple[str, ...]] = {
    "150m": ("study_gpu.yaml",),
    "1b": ("frame_1b.yaml",),
    "experts": ("frame_moe.yaml", "--pretrain.model.num_layers=4"),
    "hybrid": ("frame_hybrid.yaml", "--pretrain.model.num_layers=10"),  # one period of its layers
}
# What a peer needs beside PyTorch and transformers to be worth comparing with.
PEERS: dict[str, tuple[str, ...]] = {
    "150m": (),
    "experts": ("transformers.integrations.moe",),
    "hybrid": ("mamba_ssm.ops.triton.ssd_combined", "causal_conv1d"),
}
# Custom calls that are kernels: of libraries, and Pallas for GPUs and TPUs. The others are notes of
# the compiler to itself.
KERNEL = re.compile(
    r'^ *(?:ROOT )?%?(\S+) = .*custom_call_target="(__[^"]+|tpu_custom_call|mosaic_gpu[^"]*)"(.*)',
    re.MULTILINE,
)
PALLAS = re.compile(r"triton|tpu_custom_call|mosaic")
Kind = Literal["dense", "experts", "hybrid"]
Finding = dict[str, Any]


class Comparison(NamedTuple):
    """A relative error, and the kernels that ran on the device, by `kernel_names`."""

    error: float
    kernels: dict[str, int]


def finding(check: str, value: float, limit: float | None = None, **more: Any) -> Finding:
    """A line: `value` must be a number, and at most `limit` where there is one."""
    ok = bool(np.isfinite(value)) and (limit is None or value <= limit)
    return {"check": check, "ok": ok, "value": float(f"{value:.4g}"), "limit": limit, **more}


def skipped(check: str, why: str) -> Finding:
    return {"check": check, "ok": True, "value": None, "limit": None, "skipped": why}


def precision(dtype: str) -> Any:
    """As scoring has it: left alone, a TPU or a GPU rounds the operands of float32 products."""
    return jax.default_matmul_precision("highest" if dtype == "float32" else None)


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.linalg.norm(np.ravel(found - exact)) / np.linalg.norm(np.ravel(exact)))


def kernel_names(text: str | None) -> dict[str, int]:
    """The kernels that a compiled program calls beside what XLA made itself, and how often each
    stands in its text; a library's by its target, one of Pallas by its own name."""
    names: Counter[str] = Counter()
    for operation, target, rest in KERNEL.findall(text or ""):
        if PALLAS.search(target):
            # As it stands in the path, or of a derivative inside `transpose(jvp(name))`.
            own = re.search(r'op_name="(?:[^"]*[/(])?([^"/()]+)\)*/pallas_call"', rest)
            target = own[1] if own else re.sub(r"\.\d+$", "", operation)
        names[target] += 1
    return dict(sorted(names.items()))


def compare(
    kernel: Callable[..., jax.Array], exact: Callable[..., np.ndarray], *inputs: jax.Array
) -> Comparison:
    """How far a kernel's result and derivatives are from float64, the worst of them.

    A derivative is compared along one random direction with a difference of `exact`, which is the
    same function in NumPy.
    """
    random = np.random.default_rng(1)
    points = [np.asarray(x, np.float64) for x in inputs]
    want = np.asarray(exact(*points))
    grad = jnp.asarray(random.normal(size=want.shape), jax.eval_shape(kernel, *inputs).dtype)

    def run(grad: jax.Array, *inputs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        result, pull_back = jax.vjp(kernel, *inputs)
        return result, pull_back(grad)

    compiled = jax.jit(run).lower(grad, *inputs).compile()
    found, derivatives = jax.tree.map(lambda x: np.asarray(x, np.float64), compiled(grad, *inputs))
    errors, weights = [relative(found, want)], np.asarray(grad, np.float64)
    for i, derivative in enumerate(derivatives):
        direction = random.normal(size=derivative.shape)
        ends = [
            np.sum(weights * exact(*points[:i], points[i] + h * direction, *points[i + 1 :]))
            for h in (STEP, -STEP)
        ]
        slope = (ends[0] - ends[1]) / (2 * STEP)
        off = abs(np.sum(derivative * direction) - slope)
        errors.append(float(off / np.linalg.norm(np.ravel(derivative))))
    worst = float(np.max(errors))  # NaN, if one of them is
    return Comparison(worst, kernel_names(compiled.as_text()))


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def compare_attention(head_dim: int, rows: Sequence[Sequence[int]], dtype: str) -> Comparison:
    """Two query heads a key head, in rows of documents of these lengths."""
    random = np.random.default_rng(0)
    ids = np.stack([np.repeat(np.arange(len(lengths)), lengths) for lengths in rows])
    B, T = ids.shape
    sees = (ids[:, :, None] == ids[:, None, :]) & np.tri(T, dtype=bool)

    def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        q, k, v = (x.swapaxes(1, 2) for x in (q, *(np.repeat(x, 2, axis=2) for x in (k, v))))
        scores = q @ k.swapaxes(2, 3) / np.sqrt(head_dim)
        return (softmax(np.where(sees[:, None], scores, -np.inf)) @ v).swapaxes(1, 2)

    segments = jnp.asarray(ids, jnp.int32)
    inputs = [jnp.asarray(random.normal(size=(B, T, h, head_dim)), dtype) for h in (4, 2, 2)]
    return compare(lambda q, k, v: attention(q, k, v, segments), exact, *inputs)


def compare_grouped(chosen: np.ndarray, dtype: str) -> Comparison:
    """The experts of each token, [M, k], of eight."""
    random, E, D, F = np.random.default_rng(0), 8, 256, 384
    tile = rows_per_tile(chosen.size, E)
    counts = np.bincount(chosen.ravel(), minlength=E)
    # The tiles of each expert, and one that none needs.
    expert_of_tile = np.append(np.repeat(np.arange(E), -(-counts // tile)), E)
    expert, rows = np.repeat(expert_of_tile, tile), len(expert_of_tile) * tile
    index = np.arange(rows) - np.searchsorted(expert, expert)  # among the rows of its expert
    filled = index < np.append(counts, 0)[expert]
    tiles, has_row = jnp.asarray(expert_of_tile, jnp.int32), jnp.asarray(filled)[:, None]

    def kernel(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.where(has_row, grouped_matmul(jnp.where(has_row, x, 0), w, tiles), 0)

    def exact(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        product = np.zeros((rows, F))
        for e in range(E):
            product[filled & (expert == e)] = x[filled & (expert == e)] @ w[e]
        return product

    shapes = (rows, D), (E, D, F)
    return compare(kernel, exact, *(jnp.asarray(random.normal(size=s), dtype) for s in shapes))


def choices(M: int) -> dict[str, np.ndarray]:
    """The experts of about M tokens, [tokens, k], by what is special about them."""
    random = np.random.default_rng(0)
    tails = np.repeat(np.arange(8), [1, M // 2 - 1, M // 2 + 1, 3, M - 1, M + 1, 127, 129])
    return {
        "two of eight experts each": np.stack([random.permutation(8)[:2] for _ in range(M)]),
        "empty experts": np.repeat([1, 4, 5], [M // 2, M, M // 2])[:, None],
        "one expert has all rows": np.full((M, 1), 3),
        "uneven tails": random.permutation(tails)[:, None],
    }


def compare_ssd(state_size: int, chunk: int, lengths: Sequence[int], dtype: str) -> Comparison:
    """Eight heads in two groups, and documents of these lengths in a row."""
    random, H, P, G, N, T = np.random.default_rng(0), 8, 64, 2, state_size, sum(lengths)
    places = np.concatenate([np.arange(length) for length in lengths])
    ids = np.repeat(np.arange(len(lengths)), lengths)
    reaches = (ids[:, None] == ids) & np.tri(T, dtype=bool)  # [i, j]: token j, token i

    def exact(x, dt, a, b, c, d) -> np.ndarray:  # type: ignore[no-untyped-def]
        x, b, c = (np.repeat(v, H // v.shape[2], axis=2).swapaxes(1, 2) for v in (x, b, c))
        dt = dt.swapaxes(1, 2)  # [1, H, T], as all of them have heads in front
        sums = np.cumsum(dt * a[:, None], axis=-1)
        between = sums[..., :, None] - sums[..., None, :]
        weights = np.exp(np.where(reaches, between, -np.inf)) * (c @ b.swapaxes(2, 3))
        return (weights @ (dt[..., None] * x) + d[:, None, None] * x).swapaxes(1, 2)

    normal = random.normal
    inputs = [
        jnp.asarray(normal(size=(1, T, H, P)), dtype),
        jnp.asarray(random.uniform(0.01, 0.1, (1, T, H)), jnp.float32),
        jnp.asarray(-random.uniform(1, 8, H), jnp.float32),
        jnp.asarray(normal(size=(1, T, G, N)), dtype),
        jnp.asarray(normal(size=(1, T, G, N)), dtype),
        jnp.asarray(normal(size=H), jnp.float32),
    ]
    positions = jnp.asarray(places[None], jnp.int32)
    return compare(lambda *given: ssd(*given, positions, chunk), exact, *inputs)  # type: ignore[call-arg]


def compare_cross_entropy(T: int, dtype: str) -> Comparison:
    """With a z-loss, in two pieces, and targets that do not count."""
    random, B, D, V, z_loss_weight = np.random.default_rng(0), 2, 128, 512, 1e-2
    targets, weights = random.integers(0, V, (B, T)), random.integers(0, 2, (B, T))

    def exact(hidden: np.ndarray, w: np.ndarray) -> np.ndarray:
        logits = hidden @ w.T
        total = np.log(np.exp(logits).sum(axis=-1))
        nll = total - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
        return np.sum(weights * (nll + z_loss_weight * total**2))

    def kernel(hidden: jax.Array, w: jax.Array) -> jax.Array:
        ids, counted = jnp.asarray(targets, jnp.int32), jnp.asarray(weights, jnp.float32)
        return cross_entropy(hidden, w, ids, counted, 2, z_loss_weight)[0]

    hidden = jnp.asarray(random.normal(size=(B, T, D)), dtype)
    w = jnp.asarray(random.normal(size=(V, D)) * D**-0.5, dtype).astype(jnp.float32)
    return compare(kernel, exact, hidden, w)


def kernel_checks(small: bool) -> Iterator[tuple[str, Callable[[str], Comparison]]]:
    """Names of checks, and each as a function of the dtype. Sizes are such that kernels for GPUs
    and TPUs take them, where the name does not say otherwise."""
    T = 128 if small else 512
    few, many = [[T // 3, 1, T - T // 3 - 1], [T - 2, 2]], [[7] * (T // 7) + [T % 7]] * 2
    uneven = [[T // 3, T - 12 - T // 3], [T - 12]]
    for head_dim in (64,) if small else (64, 128, 256):
        name = f"attention, heads of {head_dim}"
        yield name, functools.partial(compare_attention, head_dim, few)
    yield "attention, many documents", functools.partial(compare_attention, 64, many)
    yield f"attention, rows of {T - 12}", functools.partial(compare_attention, 64, uneven)
    for name, chosen in choices(T).items():
        yield f"grouped product, {name}", functools.partial(compare_grouped, chosen)
    Q = T // 2
    documents = [Q // 3, 1, Q - Q // 3 - 1]
    yield "ssd, states of 64", functools.partial(compare_ssd, 64, 64, documents)
    yield "ssd, states of 128", functools.partial(compare_ssd, 128, Q, [Q, *documents])
    yield "ssd, uneven tail", functools.partial(compare_ssd, 64, 64, [Q, Q // 3])
    yield "cross entropy", functools.partial(compare_cross_entropy, T)


def kernels(small: bool) -> Iterator[Finding]:
    """Each kernel against NumPy in float64, forward and backward."""
    for dtype, limit in LIMITS.items():
        for name, check in kernel_checks(small):
            with precision(dtype):
                error, names = check(dtype)
            yield finding(f"{name}, {dtype}", error, limit, kernels=names)


def tiny(dtype: str, kind: Kind = "dense") -> Decoder:
    """A model of two layers, of sizes that kernels take; a hybrid has one of each mixer."""
    config = ModelConfig(128, 256, 2, 2, 1, head_dim=64)
    changes: dict[str, Any] = {
        "dense": {},
        "experts": {
            "layers": ("attention+experts",),
            "qk_norm": True,
            "qk_norm_over": "projection",
            "tie_embeddings": False,
        },
        "hybrid": {"layers": ("mamba2+dense", "attention+dense"), "partial_rotary_factor": 0.0},
    }[kind]
    config = dataclasses.replace(
        config, experts=ExpertsConfig(8, 2, 128), mamba2=Mamba2Config(4, 64, 64, 2), **changes
    )
    return Decoder(config, 512, dtype)


def token_rows(count: int, length: int, vocab_size: int) -> np.ndarray:
    """[count, length + 1] int32: two documents a row, tokens with the frequencies of a language."""
    shape = (count, length + 1)
    rows = np.minimum(np.random.default_rng(0).zipf(1.2, shape) + 1, vocab_size - 1)
    rows[:, [0, length // 3]], rows[:, length // 3 - 1] = BOS, EOS
    return rows.astype(np.int32)


def random_weights(decoder: Decoder) -> Any:
    """Larger than those that training begins with, so that no part of the model is lost in the
    rounding of another."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda x, axes: (random.normal(size=x.shape) * 0.1 + ("norm" in axes)).astype(np.float32),
        decoder.shapes(),
        decoder.axes(),
    )


def loss_and_gradients(
    decoder: Decoder, rows: np.ndarray, device: jax.Device
) -> tuple[Any, dict[str, int]]:
    """Of a batch under `random_weights`, on one device; and the kernels there."""
    mesh = make_mesh(ParallelConfig(), [device])

    def run(params: Any, rows: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            batch = make_lm_batch(rows, SpecialTokens(BOS, EOS, 512), True)
            objective, _ = loss_fn(decoder, params, batch, 2, TrainingConfig())
            return objective / jnp.sum(batch.loss_mask)

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.value_and_grad(loss)(params)

    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    inputs = jax.device_put((random_weights(decoder), rows), whole)
    with precision(decoder.compute_dtype):
        compiled = jax.jit(run).lower(*inputs).compile()
    return jax.device_get(compiled(*inputs)), kernel_names(compiled.as_text())


def compare_step(decoder: Decoder, rows: np.ndarray) -> Comparison:
    """This device's loss and gradients with those of the CPU beside it."""
    here, names = loss_and_gradients(decoder, rows, jax.devices()[0])
    there, _ = loss_and_gradients(decoder, rows, jax.devices("cpu")[0])
    errors = list(map(relative, jax.tree.leaves(here), jax.tree.leaves(there)))
    return Comparison(float(np.max(errors)), names)  # NaN, if one of them is


def step(small: bool) -> Iterator[Finding]:
    """Loss and gradients of a training step, on this device and on the CPU beside it."""
    rows = token_rows(2, 128 if small else 512, 512)
    kinds: tuple[Kind, ...] = ("dense", "experts", "hybrid")
    for kind in kinds:
        for dtype, limit in STEP_LIMITS.items():
            worst, names = compare_step(tiny(dtype, kind), rows)
            yield finding(f"step against the CPU, {kind}, {dtype}", worst, limit, kernels=names)


def documents(count: int, longest: int, vocab_size: int) -> list[np.ndarray]:
    """Of 1 to `longest` tokens, most of them short."""
    random = np.random.default_rng(0)
    lengths = (random.uniform(size=count) ** 2 * longest).astype(int) + 1
    return [random.integers(2, vocab_size, n).astype(np.uint32) for n in lengths]


def scoring(small: bool) -> Iterator[Finding]:
    """Documents packed in rows, and each of them alone."""
    texts = documents(6 if small else 24, 200, 512)
    for dtype, limit in SCORE_LIMITS.items():
        decoder = tiny(dtype)
        model = decoder, random_weights(decoder)
        scorer = Scorer([model], ScoringConfig(128, per_device_batch_size=2, loss_chunk=128))
        packed = score_documents(scorer, texts, bos_id=BOS).nll[0]
        alone = [score_documents(scorer, [text], bos_id=BOS).nll[0, 0] for text in texts]
        worst = float(np.max(np.abs(packed / np.array(alone) - 1)))
        yield finding(f"packed scores, {dtype}", worst, limit)


def small_job(root: Path, folder: str) -> TrainingJob:
    """Four steps over rows that lie in `root`."""
    quadrants, rows, length = AxesConfig().quadrants, 8 * jax.device_count(), 128
    parts = {
        quadrant: [root / quadrant / "part-00000-of-00001.arrayrecord"] for quadrant in quadrants
    }
    for path, *_ in parts.values():
        if not path.exists():
            with write_tokens(path) as writer:
                for row in token_rows(rows, length, 512):
                    writer.append(row)
    schedule = resolve_curriculum(
        expand_curriculum(CurriculumConfig(preset="random"), AxesConfig()),
        dict.fromkeys(quadrants, rows),
        batch_size=rows,
        sequence_length=length,
    )
    return TrainingJob(
        name=folder,
        folder=root / folder,
        decoder=tiny("bfloat16"),
        training=TrainingConfig(batch_size=rows, milestones=2),
        parallel=ParallelConfig(),
        special_tokens=SpecialTokens(BOS, EOS, 512),
        selection=SelectionMap(schedule, seed=0),
        parts=parts,
        sequence_length=length,
        fingerprint="check",
    )


def resume(small: bool) -> Iterator[Finding]:
    """Training from the checkpoint in the middle, and without a stop: the same bits.

    Where a device does not give the same bits twice, resuming may differ by as much.
    """

    def weights(job: TrainingJob) -> list[np.ndarray]:
        train(job)
        return jax.tree.leaves(checkpoints.load_params(job.folder / "checkpoints", job.decoder))

    def difference(left: list[np.ndarray], right: list[np.ndarray]) -> float:
        return max(float(np.max(np.abs(a - b))) for a, b in zip(left, right, strict=True))

    with tempfile.TemporaryDirectory() as name:
        whole, resumed, again = (small_job(Path(name), f) for f in ("whole", "resumed", "again"))
        straight = weights(whole)
        shutil.copytree(whole.folder, resumed.folder)
        shutil.rmtree(resumed.folder / "checkpoints" / str(resumed.steps))
        apart = difference(straight, weights(resumed))
        yield finding("resume", apart, difference(straight, weights(again)) if apart else 0.0)


def rate(step: Callable[[], Any], tokens: int, seconds: float) -> float:
    """Tokens a second: the median of the steps in so many seconds, after two that do not count."""
    times: list[float] = []
    for _ in range(2):
        step()
    while sum(times) < seconds or len(times) < 3:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return tokens / statistics.median(times)


def out_of_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error)


@dataclasses.dataclass(frozen=True)
class Shape:
    """What speeds are measured of.

    Attributes:
        decoder: The model.
        training: How it is trained.
        length: Tokens in a row.
        settings: The config that they are from, as arguments.
        seconds: How long to measure.
    """

    decoder: Decoder
    training: TrainingConfig
    length: int
    settings: list[str]
    seconds: float

    @classmethod
    def of(cls, name: str, small: bool) -> Shape:
        """One of `MODELS`."""
        file, *changes = MODELS[name]
        settings = ["--config", str(ROOT / "configs" / file), *changes]
        config, _ = parse(settings)
        training, length = config.pretrain.training, config.partition.rows.sequence_length
        if small:
            kind: Kind = name if name in ("experts", "hybrid") else "dense"  # type: ignore[assignment]
            return cls(tiny("bfloat16", kind), training, 128, settings, 0.1)
        vocab_size = padded_vocab_size(config.tokenizer.vocab_size)
        decoder = Decoder(config.pretrain.model, vocab_size, "bfloat16", training.remat)
        return cls(decoder, training, length, settings, MEASURED_SECONDS)

    def most_rows(self) -> int:
        """Rows in a batch of one device, where they fit."""
        return 2 if self.seconds < 1 else STEP_TOKENS // self.length

    def speed(self, tokens_per_second: float, flops: Callable[..., float], devices: int) -> Finding:
        """Tokens a second on so many devices, as part of a line."""
        kind, per_token = jax.devices()[0].device_kind, flops(self.decoder, self.length)
        return {
            "value": tokens_per_second,
            "unit": "tokens/s",
            "mfu": model_flops_utilisation(per_token, tokens_per_second, kind, devices),
            "devices": devices,
        }


def our_training(shape: Shape, rows: int) -> Finding:
    """Tokens a second of the train step, and its memory: the compiler's and the device's."""
    decoder, training, mesh = shape.decoder, shape.training, make_mesh(ParallelConfig())
    optimizer = make_optimizer(training, decoder, 1000)
    update = make_train_step(
        decoder,
        optimizer,
        SpecialTokens(BOS, EOS, 512),
        training,
        mesh,
        lambda step: jnp.float32(0),
    )
    shardings = param_shardings(decoder.axes(), decoder.shapes(), mesh)
    params = jax.jit(decoder.init, out_shardings=shardings)(jax.random.key(0))
    state = TrainState(jnp.zeros((), jnp.int32), params, jax.jit(optimizer.init)(params))
    batch = token_rows(rows * jax.device_count(), shape.length, decoder.vocab_size)
    batch = jax.device_put(batch, batch_sharding(mesh))
    compiled = jax.jit(update, donate_argnums=0).lower(state, batch).compile()

    def step() -> None:
        nonlocal state
        state, metrics = compiled(state, batch)
        assert np.isfinite(float(metrics["loss"]))

    speed = rate(step, rows * jax.device_count() * shape.length, shape.seconds)
    used = compiled.memory_analysis()
    assert used is not None
    size = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return shape.speed(speed, training_flops_per_token, jax.device_count()) | {
        "per_device_batch_size": rows,
        "compiler_gib": round((size - used.alias_size_in_bytes) / 2**30, 3),
        "peak_gib": peak and round(peak / 2**30, 3),
        "kernels": kernel_names(compiled.as_text()),
    }


def largest(measure: Callable[[Shape, int], Finding], shape: Shape) -> Finding | None:
    """What `measure` finds with the most rows that fit; None where not even one does."""
    rows = shape.most_rows()
    while rows:
        try:
            return measure(shape, rows)
        except Exception as error:
            if not out_of_memory(error):
                raise
        rows //= 2
    return None


def training_speed(name: str, small: bool) -> Iterator[Finding]:
    """Training a model, and what a compile-time estimate says of the same step."""
    shape = Shape.of(name, small)
    found = largest(our_training, shape)
    if found is None:
        yield skipped(f"train {name}", "one row does not fit in the device's memory")
        return
    yield finding(f"train {name}", **found)
    rows = found["per_device_batch_size"] * jax.device_count()
    measured = rows * shape.length / found["value"]
    yield estimate(f"estimate {name}", shape, rows, measured, small)


def estimate(check: str, shape: Shape, rows: int, measured: float, small: bool) -> Finding:
    """Seconds of the step that `tools/compile_ahead.py` estimates, over those measured."""
    tool = ROOT / "tools" / "compile_ahead.py"
    devices = topology(jax.devices()[0].device_kind, jax.device_count())
    if small:
        return skipped(check, "not for tiny shapes")
    if devices is None:
        return skipped(check, f"tools/{tool.name} does not know these devices")
    command = [sys.executable, str(tool), "--json", *shape.settings, "--topology", devices]
    command.append(f"--pretrain.training.batch_size={rows}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ESTIMATE_SECONDS)
        answer = json.loads(done.stdout.splitlines()[-1])
        seconds = answer.get("estimated_step_seconds") or answer["lower_bound_step_seconds"]
    except (subprocess.TimeoutExpired, ValueError, LookupError) as error:
        return skipped(check, f"tools/{tool.name} gave no estimate: {error!r}")
    return finding(check, seconds / measured, unit="estimated/measured seconds of a step")


def topology(kind: str, count: int) -> str | None:
    """The devices of one host, as `tools/compile_ahead.py` names them.

    >>> topology("NVIDIA H100 80GB HBM3", 8), topology("TPU v5", 4), topology("cpu", 1)
    ('h100:8', 'v5p:2x2x1', None)
    """
    gpu = next((name for name, chip in CHIPS.items() if chip.kind == kind), None)
    if gpu is not None:
        return f"{gpu}:{count}"
    flat = {1: "1x1", 4: "2x2", 8: "2x4"}.get(count)
    tpu = {"TPU v5": "v5p", "TPU v5 lite": "v5e", "TPU v6 lite": "v6e"}.get(kind)
    if tpu is None or flat is None:
        return None
    return f"{tpu}:{flat}x1" if tpu == "v5p" else f"{tpu}:{flat}"


def scoring_speed(name: str, small: bool) -> Iterator[Finding]:
    """Scoring documents under one model."""
    shape = Shape.of(name, small)
    params = jax.jit(shape.decoder.init)(jax.random.key(0))

    def measure(shape: Shape, rows: int) -> Finding:
        model, length = (shape.decoder, params), shape.length
        scorer = Scorer([model], ScoringConfig(length, per_device_batch_size=rows, loss_chunk=512))
        texts = documents(8 * scorer.rows, length, shape.decoder.vocab_size)
        tokens = sum(map(len, texts))
        speed = rate(lambda: score_documents(scorer, texts, bos_id=BOS), tokens, shape.seconds)
        found = shape.speed(speed, forward_flops_per_token, jax.device_count())
        return found | {"per_device_batch_size": rows}

    found, check = largest(measure, shape), f"score {name}"
    yield finding(check, **found) if found else skipped(check, "one row does not fit")


def peer(name: str, small: bool) -> Iterator[Finding]:
    """The same work in transformers on PyTorch, on one of the same devices."""
    checks = {f"peer train {name}": peer_training, f"peer score {name}": peer_scoring}
    if f"score-{name}" not in GROUPS:
        del checks[f"peer score {name}"]
    why = missing("torch", "transformers", *PEERS[name])
    if not why and not small:
        import torch

        if not torch.cuda.is_available():
            why = f"this PyTorch ({torch.__version__}) has no such device"
    if why:
        yield from (skipped(check, why) for check in checks)
        return
    shape = Shape.of(name, small)
    for check, measure in checks.items():
        found = largest(measure, shape)
        yield finding(check, **found) if found else skipped(check, "one row does not fit")


def missing(*modules: str) -> str:
    """Why some of these cannot be imported; nothing if all can."""
    why = []
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # extensions built for another PyTorch fail in any way
            why.append(f"{module} ({error})")
    return f"cannot be imported: {', '.join(why)}" if why else ""


def peer_model(shape: Shape, dtype: str) -> Any:
    """The model of transformers that computes ours, with random weights; with flash attention if
    that is installed, and the grouped product of PyTorch for experts."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as name:
        write_json(Path(name, "config.json"), model_config(shape.decoder, BOS, EOS, shape.length))
        config = AutoConfig.from_pretrained(name)
    flash = importlib.util.find_spec("flash_attn") and dtype == "bfloat16"
    options = {"attn_implementation": "flash_attention_2" if flash else "sdpa"}
    if shape.decoder.config.has("experts"):
        options["experts_implementation"] = "grouped_mm"
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), **options)


def peer_speed(shape: Shape, speed: float, flops: Callable[..., float], model: Any) -> Finding:
    """The part of a line that says how fast what was."""
    config = model.config
    parts = {"model": type(model).__name__, "attention": config._attn_implementation}
    if shape.decoder.config.has("experts"):
        parts["experts"] = config._experts_implementation
    return shape.speed(speed, flops, 1) | {"peer": parts | {"weights": str(model.dtype)}}


def peer_training(shape: Shape, rows: int) -> Finding:
    """A plain, well-set loop: compiled, autocast to bfloat16, fused AdamW.

    PyTorch's grouped product takes weights in bfloat16 alone; the kernels of Mamba-2 are called as
    they are, without `torch.compile`.
    """
    import torch

    c, o = shape.decoder.config, shape.training.optimizer
    model = peer_model(shape, "bfloat16" if c.has("experts") else "float32").train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (o.b1, o.b2), o.eps, fused=True)
    batch = torch.from_numpy(token_rows(rows, shape.length, shape.decoder.vocab_size)).long()
    batch = batch.to(model.device)

    def loss_of(batch: Any) -> Any:
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), batch[:, 1:].flatten()
        )

    plain = c.has("mamba2") or model.device.type != "cuda"
    run = loss_of if plain else torch.compile(loss_of)

    def step() -> None:
        with torch.autocast(model.device.type, torch.bfloat16):
            loss = run(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        assert np.isfinite(loss.item())

    speed = rate(step, rows * shape.length, shape.seconds)
    found = peer_speed(shape, speed, training_flops_per_token, model)
    return found | {"rows": rows, "torch_compile": not plain}


def peer_scoring(shape: Shape, rows: int) -> Finding:
    """Padded batches of documents sorted by length."""
    import torch

    model = peer_model(shape, "bfloat16").eval()
    texts = sorted(documents(8 * rows, shape.length, shape.decoder.vocab_size), key=len)

    def score() -> None:
        for start in range(0, len(texts), rows):
            group = texts[start : start + rows]
            ids = np.zeros((len(group), 1 + len(group[-1])), np.int64)
            for row, text in enumerate(group):
                ids[row, 1 : 1 + len(text)] = text
            batch = torch.from_numpy(ids).to(model.device)
            with torch.inference_mode():  # what follows a text does not change its logits
                logits = model(input_ids=batch[:, :-1], use_cache=False).logits
                torch.nn.functional.cross_entropy(
                    logits.float().flatten(0, 1), batch[:, 1:].flatten(), reduction="none"
                ).cpu()

    speed = rate(score, sum(map(len, texts)), shape.seconds)
    return peer_speed(shape, speed, forward_flops_per_token, model) | {"rows": rows}


# What runs in a process of its own, and its seconds; together TOTAL_SECONDS. What a group leaves of
# them, those after it may use.
GROUPS: dict[str, tuple[Callable[[bool], Iterator[Finding]], int]] = {
    "kernels": (kernels, 80),
    "step": (step, 60),
    "scoring": (scoring, 25),
    "resume": (resume, 35),
    **{
        f"train-{name}": (functools.partial(training_speed, name), seconds)
        for name, seconds in {"150m": 45, "1b": 55, "experts": 55, "hybrid": 55}.items()
    },
    "score-150m": (functools.partial(scoring_speed, "150m"), 25),
    "score-experts": (functools.partial(scoring_speed, "experts"), 30),
    **{
        f"peer-{name}": (functools.partial(peer, name), seconds)
        for name, seconds in {"150m": 40, "experts": 35, "hybrid": 30}.items()
    },
}


def run_group(name: str, small: bool) -> Iterator[Finding]:
    """The findings of a group, each with the seconds it took; an error is a finding."""
    start = time.perf_counter()
    try:
        for line in GROUPS[name][0](small):
            yield line | {"seconds": round(time.perf_counter() - start, 1)}
            start = time.perf_counter()
    except Exception as error:
        yield failure(name, f"{type(error).__name__}: {error}", time.perf_counter() - start)


def failure(check: str, text: str, seconds: float) -> Finding:
    line = {"check": check, "ok": False, "value": None, "limit": None, "error": text[-500:]}
    return line | {"seconds": round(seconds, 1)}


def watch(name: str, size: list[str], seconds: float) -> Iterator[Finding]:
    """Runs a group in a process of its own, for so many seconds."""
    command = [sys.executable, __file__, "--group", name, *size]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, start_new_session=True)
        try:
            code = process.wait(timeout=seconds)
            ended = "" if code == 0 else f"ended with {code}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ended = f"took more than {seconds:.0f} s"
        output.seek(0)
        yield from (json.loads(line) for line in output if line.endswith("}\n"))
    if ended:
        yield failure(name, ended, time.perf_counter() - start)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 if a check failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP")
    parser.add_argument(
        "--small",
        action=argparse.BooleanOptionalAction,
        help="tiny shapes (default: on a CPU)",
    )
    parser.add_argument("--group", choices=GROUPS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.group:
        if options.group.startswith("peer"):  # the device's memory is for PyTorch
            os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        small = options.small
        if small is None:
            small = jax.default_backend() == "cpu"
        for line in run_group(options.group, small):
            print(json.dumps(line), flush=True)
        return 0
    size = [] if options.small is None else ["--small" if options.small else "--no-small"]
    end, lines, ok = time.monotonic(), dict[str, Finding](), True
    for name in options.only:
        end += GROUPS[name][1]
        for line in watch(name, size, end - time.monotonic()):
            ok, lines[line["check"]] = ok and line["ok"], line
            ours = lines.get(line["check"].removeprefix("peer "), {})
            if line["check"].startswith("peer ") and ours.get("value") and line["value"]:
                line["ratio"] = round(ours["value"] / ours["devices"] / line["value"], 3)
            print(json.dumps(line), flush=True)
    return 0 if ok else 1


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main())
