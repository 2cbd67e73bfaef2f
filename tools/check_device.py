"""Is this accelerator right, and how fast is it? One command for an hour with one; one JSON line a
check.

    python tools/check_device.py                  # everything, in less than ten minutes
    python tools/check_device.py --only kernels   # or some of: kernels step scoring resume ...

Each group of checks is a process of its own with a time limit, so that none takes another's memory
and none that hangs takes the hour. `ok` compares `value` with `limit`; a line with `skipped` says
why there is nothing to compare. The exit code is 1 if a check failed. On a CPU, or with `--small`,
shapes are tiny and speeds mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from compiled_programs.chips import CHIPS

from frame_jax import checkpoints
from frame_jax.config.curriculum import CurriculumConfig
from frame_jax.config.file import load
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
from frame_jax.models.grouped_product import grouped_matmul, place_choices, rows_per_tile
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
Finding = dict[str, Any]


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


def error(
    kernel: Callable[..., jax.Array], exact: Callable[..., np.ndarray], *inputs: jax.Array
) -> float:
    """How far a kernel's result and derivatives are from float64, the worst of them.

    A derivative is compared along one random direction with a difference of `exact`, which is the
    same function in NumPy.
    """
    random = np.random.default_rng(1)
    points = [np.asarray(x, np.float64) for x in inputs]
    want = np.asarray(exact(*points))
    grad = jnp.asarray(random.normal(size=want.shape), jax.eval_shape(kernel, *inputs).dtype)

    @jax.jit
    def run(grad: jax.Array, *inputs: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        result, pull_back = jax.vjp(kernel, *inputs)
        return result, pull_back(grad)

    found, derivatives = jax.tree.map(lambda x: np.asarray(x, np.float64), run(grad, *inputs))
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
    return float(np.max(errors))  # NaN, if one of them is


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def attention_error(head_dim: int, T: int, dtype: str) -> float:
    """Two query heads a key head, in rows of documents of 1 to T - 2 tokens."""
    random = np.random.default_rng(0)
    ids = np.stack(
        [np.repeat([0, 1, 2], [T // 3, 1, T - T // 3 - 1]), np.repeat([0, 1], [T - 2, 2])]
    )
    sees = (ids[:, :, None] == ids[:, None, :]) & np.tri(T, dtype=bool)

    def exact(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        k, v = np.repeat(k, 2, axis=2), np.repeat(v, 2, axis=2)
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(head_dim)
        return np.einsum("bhqk,bkhd->bqhd", softmax(np.where(sees[:, None], scores, -np.inf)), v)

    segments = jnp.asarray(ids, jnp.int32)
    inputs = [jnp.asarray(random.normal(size=(2, T, h, head_dim)), dtype) for h in (4, 2, 2)]
    return error(lambda q, k, v: attention(q, k, v, segments), exact, *inputs)


def grouped_error(M: int, dtype: str) -> float:
    """M tokens with two of four experts each, one of which nothing chose."""
    random, E, D, F = np.random.default_rng(0), 4, 128, 256
    chosen = jnp.asarray([random.permutation(E - 1)[:2] for _ in range(M)], jnp.int32)
    placement = jax.jit(place_choices, static_argnums=(1, 2))(chosen, E, rows_per_tile(2 * M, E))
    tiles, rows = placement.tile_expert, len(placement.source)
    expert = np.repeat(np.asarray(tiles), rows // len(tiles))
    used = jnp.asarray(expert < E)[:, None]

    def kernel(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.where(used, grouped_matmul(jnp.where(used, x, 0), w, tiles), 0)

    def exact(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return sum((expert == e)[:, None] * (x @ w[e]) for e in range(E))

    shapes = (rows, D), (E, D, F)
    return error(kernel, exact, *(jnp.asarray(random.normal(size=s), dtype) for s in shapes))


def ssd_error(T: int, dtype: str) -> float:
    """Four heads in two groups, and a document that begins inside a chunk."""
    random, H, P, G, N, chunk = np.random.default_rng(0), 4, 64, 2, 64, 64
    places = np.concatenate([np.arange(T // 3), np.arange(T - T // 3)])[None]

    def exact(x, dt, a, b, c, d) -> np.ndarray:  # type: ignore[no-untyped-def]
        b, c = np.repeat(b, H // G, axis=2), np.repeat(c, H // G, axis=2)
        state, y = np.zeros((1, H, N, P)), np.zeros_like(x)
        for t in range(T):
            kept = np.exp(dt[:, t] * a) * (places[:, t] > 0)[:, None]
            new = (dt[:, t, :, None] * b[:, t])[..., None] * x[:, t, :, None]
            state = kept[..., None, None] * state + new
            y[:, t] = np.einsum("bhn,bhnp->bhp", c[:, t], state) + d[:, None] * x[:, t]
        return y

    normal = random.normal
    inputs = [
        jnp.asarray(normal(size=(1, T, H, P)), dtype),
        jnp.asarray(random.uniform(0.01, 0.1, (1, T, H)), jnp.float32),
        jnp.asarray(-random.uniform(1, 8, H), jnp.float32),
        jnp.asarray(normal(size=(1, T, G, N)), dtype),
        jnp.asarray(normal(size=(1, T, G, N)), dtype),
        jnp.asarray(normal(size=H), jnp.float32),
    ]
    positions = jnp.asarray(places, jnp.int32)
    return error(lambda *given: ssd(*given, positions, chunk), exact, *inputs)  # type: ignore[call-arg]


def cross_entropy_error(T: int, dtype: str) -> float:
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
    return error(kernel, exact, hidden, w)


def kernels(small: bool) -> Iterator[Finding]:
    """Each kernel against NumPy in float64, forward and backward."""
    length = 128 if small else 512
    for dtype, limit in LIMITS.items():
        with precision(dtype):
            for head_dim in (64,) if small else (64, 128, 256):
                name = f"attention, heads of {head_dim}, {dtype}"
                yield finding(name, attention_error(head_dim, length, dtype), limit)
            yield finding(f"grouped product, {dtype}", grouped_error(length, dtype), limit)
            yield finding(f"ssd, {dtype}", ssd_error(length // 2, dtype), limit)
            yield finding(f"cross entropy, {dtype}", cross_entropy_error(length, dtype), limit)


def tiny(dtype: str, hybrid: bool = False) -> Decoder:
    """A model of two layers, or of one layer of each kind."""
    config = ModelConfig(128, 256, 2, 2, 1, head_dim=64)
    if hybrid:
        config = dataclasses.replace(
            config,
            layers=("mamba2+dense", "attention+experts"),
            experts=ExpertsConfig(8, 2, 128),
            mamba2=Mamba2Config(4, 64, 32, 2),
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


def loss_and_gradients(decoder: Decoder, rows: np.ndarray, device: jax.Device) -> Any:
    """Of a batch under `random_weights`, on one device."""
    mesh = make_mesh(ParallelConfig(), [device])

    def run(params: Any, rows: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            batch = make_lm_batch(rows, SpecialTokens(BOS, EOS, 512), True)
            objective, _ = loss_fn(decoder, params, batch, 2, TrainingConfig())
            return objective / jnp.sum(batch.loss_mask)

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.value_and_grad(loss)(params)

    params = random_weights(decoder)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    with precision(decoder.compute_dtype):
        return jax.device_get(jax.jit(run)(*jax.device_put((params, rows), whole)))


def step(small: bool) -> Iterator[Finding]:
    """Loss and gradients of a training step, on this device and on the CPU beside it."""
    device, cpu = jax.devices()[0], jax.devices("cpu")[0]
    rows = token_rows(2, 128 if small else 512, 512)
    for hybrid, dtype in ((False, "bfloat16"), (False, "float32"), (True, "float32")):
        decoder = tiny(dtype, hybrid)
        here, there = (loss_and_gradients(decoder, rows, at) for at in (device, cpu))
        worst = max(map(relative, jax.tree.leaves(here), jax.tree.leaves(there)))
        name = "a layer of each kind" if hybrid else "dense"
        yield finding(f"step against the CPU, {name}, {dtype}", worst, STEP_LIMITS[dtype])


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
        config: The file they are from.
        seconds: How long to measure.
    """

    decoder: Decoder
    training: TrainingConfig
    length: int
    config: Path
    seconds: float

    @classmethod
    def of(cls, name: str, small: bool) -> Shape:
        """`150m` or `1b`: the target model of a config."""
        path = ROOT / "configs" / {"150m": "study_gpu.yaml", "1b": "frame_1b.yaml"}[name]
        config = load(path)
        training, length = config.pretrain.training, config.partition.rows.sequence_length
        if small:
            return cls(tiny("bfloat16"), training, 128, path, 0.1)
        vocab_size = padded_vocab_size(config.tokenizer.vocab_size)
        decoder = Decoder(config.pretrain.model, vocab_size, "bfloat16", training.remat)
        return cls(decoder, training, length, path, 10.0)

    def most_rows(self) -> int:
        """Rows in a batch of one device, where they fit."""
        return 2 if self.seconds < 1 else STEP_TOKENS // self.length

    def mfu(self, tokens_per_second: float, flops: Callable[..., float]) -> float | None:
        per_token = flops(self.decoder, self.length)
        kind, count = jax.devices()[0].device_kind, jax.device_count()
        return model_flops_utilisation(per_token, tokens_per_second, kind, count)


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
    return {
        "value": speed,
        "unit": "tokens/s",
        "mfu": shape.mfu(speed, training_flops_per_token),
        "per_device_batch_size": rows,
        "compiler_gib": round((size - used.alias_size_in_bytes) / 2**30, 3),
        "peak_gib": peak and round(peak / 2**30, 3),
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
    command = [sys.executable, str(tool), "--json", "--config", str(shape.config)]
    command += ["--topology", devices, f"--pretrain.training.batch_size={rows}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
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


def scoring_speed(small: bool) -> Iterator[Finding]:
    """Scoring documents under one model."""
    shape = Shape.of("150m", small)
    params = jax.jit(shape.decoder.init)(jax.random.key(0))

    def measure(shape: Shape, rows: int) -> Finding:
        model, length = (shape.decoder, params), shape.length
        scorer = Scorer([model], ScoringConfig(length, per_device_batch_size=rows, loss_chunk=512))
        texts = documents(8 * scorer.rows, length, shape.decoder.vocab_size)
        tokens = sum(map(len, texts))
        speed = rate(lambda: score_documents(scorer, texts, bos_id=BOS), tokens, shape.seconds)
        mfu = shape.mfu(speed, forward_flops_per_token)
        return {"value": speed, "unit": "tokens/s", "mfu": mfu, "per_device_batch_size": rows}

    found = largest(measure, shape)
    yield finding("score 150m", **found) if found else skipped("score 150m", "does not fit")


def peer(small: bool) -> Iterator[Finding]:
    """The same work in transformers on PyTorch, on the same device."""
    checks = ("peer train 150m", "peer score 150m")
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    why = f"not installed: {', '.join(missing)}" if missing else ""
    if not missing:
        import torch

        if not small and not torch.cuda.is_available():
            why = f"this PyTorch ({torch.__version__}) has no such device"
    if why:
        yield from (skipped(check, why) for check in checks)
        return
    shape = Shape.of("150m", small)
    for check, measure in zip(checks, (peer_training, peer_scoring), strict=True):
        found = largest(measure, shape)
        yield finding(check, **found) if found else skipped(check, "one row does not fit")


def peer_model(shape: Shape, dtype: str) -> Any:
    """A Llama of the same shape with random weights, with flash attention if that is installed."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as name:
        write_json(Path(name, "config.json"), model_config(shape.decoder, BOS, EOS, shape.length))
        config = AutoConfig.from_pretrained(name)
    flash = importlib.util.find_spec("flash_attn") and dtype == "bfloat16"
    model = AutoModelForCausalLM.from_config(
        config,
        dtype=getattr(torch, dtype),
        attn_implementation="flash_attention_2" if flash else "sdpa",
    )
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def peer_training(shape: Shape, rows: int) -> Finding:
    """A plain, well-set loop: compiled, autocast to bfloat16, fused AdamW."""
    import torch

    model, o = peer_model(shape, "float32").train(), shape.training.optimizer
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (o.b1, o.b2), o.eps, fused=True)
    batch = torch.from_numpy(token_rows(rows, shape.length, shape.decoder.vocab_size)).long()
    batch = batch.to(model.device)

    def loss_of(batch: Any) -> Any:
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), batch[:, 1:].flatten()
        )

    compiled = torch.compile(loss_of) if model.device.type == "cuda" else loss_of

    def step() -> None:
        with torch.autocast(model.device.type, torch.bfloat16):
            loss = compiled(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        assert np.isfinite(loss.item())

    speed = rate(step, rows * shape.length, shape.seconds)
    return {"value": speed, "unit": "tokens/s on one device", "rows": rows}


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
    return {"value": speed, "unit": "tokens/s on one device", "rows": rows}


# What runs in a process of its own, and its seconds; together TOTAL_SECONDS.
GROUPS: dict[str, tuple[Callable[[bool], Iterator[Finding]], int]] = {
    "kernels": (kernels, 120),
    "step": (step, 75),
    "scoring": (scoring, 45),
    "resume": (resume, 50),
    "train-150m": (lambda small: training_speed("150m", small), 75),
    "train-1b": (lambda small: training_speed("1b", small), 90),
    "score-150m": (scoring_speed, 40),
    "peer": (peer, 75),
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
        small = options.small
        if small is None:
            small = jax.default_backend() == "cpu"
        for line in run_group(options.group, small):
            print(json.dumps(line), flush=True)
        return 0
    size = [] if options.small is None else ["--small" if options.small else "--no-small"]
    end, values, ok = time.monotonic() + TOTAL_SECONDS, dict[str, Any](), True
    for name in options.only:
        left = end - time.monotonic()
        for line in watch(name, size, min(GROUPS[name][1], left)):
            ok, values[line["check"]] = ok and line["ok"], line["value"]
            ours = values.get(line["check"].removeprefix("peer "))
            if line["check"].startswith("peer ") and ours and line["value"]:
                line["ratio"] = round(ours / line["value"], 3)
            print(json.dumps(line), flush=True)
    return 0 if ok else 1


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main())
