"""Our train step against Hugging Face models on PyTorch, on this machine; one JSON line a shape.

    python tools/benchmark_train.py          # needs torch and transformers
    python tools/benchmark_train.py --shapes experts mamba2
    python tools/benchmark_train.py --dtypes float32

Both train the same model (float32 weights, AdamW, clipping) from the same weights on the same
batches, alternately, a step each. `ratio` is the median over the steps, compilation left out, of
our tokens a second over theirs; the losses of all steps are compared. Each side multiplies in the
type it is fastest in, of those that the processor multiplies; the peer is the better of eager and
`torch.compile`. Both run under the same allocator.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from processor import processor

from frame_jax.config.models import ExpertsConfig, Mamba2Config, ModelConfig
from frame_jax.config.parallel import ParallelConfig
from frame_jax.config.training import LRScheduleConfig, TrainingConfig
from frame_jax.models.hugging_face.export import model_config, write_weights
from frame_jax.models.transformer import Decoder
from frame_jax.parallel.cpu_devices import set_cpu_devices
from frame_jax.parallel.hardware import multiplies_bfloat16
from frame_jax.parallel.host import available_cores, prefer_huge_pages
from frame_jax.parallel.sharding import batch_sharding, make_mesh, param_shardings
from frame_jax.run.directory import write_json
from frame_jax.run.special_tokens import SpecialTokens
from frame_jax.training.optimizer import (
    learning_rate,
    make_optimizer,
    optimizer_shardings,
)
from frame_jax.training.train_step import TrainState, make_train_step

# Smaller pieces of the loss than the default: their logits stay near the cores. Both minimise the
# loss of the tokens alone.
TRAINING = TrainingConfig(
    lr_schedule=LRScheduleConfig(kind="constant", warmup_fraction=0),
    loss_chunk=1024,
    load_balance_loss_weight=0,
    router_z_loss_weight=0,
)
WARM_UP = 2  # steps that are not timed
Step = Callable[[np.ndarray], float]  # rows [B, T + 1] to the loss before the update


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is trained.

    Attributes:
        family: The peer's model: Llama, OLMoE (64 experts, 8 a token) or Mamba-2.
        hidden_size: Width.
        num_layers: Depth.
        vocab_size: Rows of the embedding.
        rows: Rows in a batch.
        length: Tokens in a row.
    """

    family: Literal["Llama", "Olmoe", "Mamba2"]
    hidden_size: int
    num_layers: int
    vocab_size: int
    rows: int
    length: int

    def decoder(self, dtype: str) -> Decoder:
        """Ours, multiplying in this type."""
        heads = self.hidden_size // 64
        inner = -(-8 * self.hidden_size // 3 // 64) * 64
        config = ModelConfig(self.hidden_size, inner, self.num_layers, heads, heads)
        if self.family == "Olmoe":
            config = dataclasses.replace(
                config,
                layers=("attention+experts",),
                experts=ExpertsConfig(64, 8, self.hidden_size // 2),
                qk_norm=True,
                qk_norm_over="projection",
            )
        elif self.family == "Mamba2":
            mixer = Mamba2Config(num_heads=2 * heads, state_size=128)
            config = dataclasses.replace(config, layers=("mamba2+none",), mamba2=mixer)
        return Decoder(config, self.vocab_size, dtype, TRAINING.remat)

    def batch(self, index: int) -> np.ndarray:
        """Tokens with the frequencies of a language and no order, int32."""
        random = np.random.default_rng(index)
        shape = (self.rows, self.length + 1)
        return np.minimum(random.zipf(1.2, shape) + 2, self.vocab_size - 1).astype(np.int32)


SHAPES = {
    "quickstart": Shape("Llama", 64, 4, 2048, 16, 256),
    "small": Shape("Llama", 256, 6, 8192, 16, 512),
    "medium": Shape("Llama", 512, 8, 16384, 8, 512),
    "large": Shape("Llama", 768, 12, 32768, 4, 1024),
    "experts": Shape("Olmoe", 256, 4, 8192, 8, 512),
    "mamba2": Shape("Mamba2", 256, 6, 8192, 8, 512),
}


def our_step(decoder: Decoder, params: dict) -> Step:
    """The step of `frame_jax.training`, as the trainer compiles it."""
    mesh = make_mesh(ParallelConfig())
    optimizer = make_optimizer(TRAINING, decoder, 1000)
    rate = lambda step: learning_rate(TRAINING.lr_schedule, step, 1000)  # noqa: E731
    special_tokens = SpecialTokens(0, 1, decoder.vocab_size)
    replicated, shapes = NamedSharding(mesh, PartitionSpec()), decoder.shapes()
    shards = param_shardings(decoder.axes(), shapes, mesh)
    moments = optimizer_shardings(optimizer, shapes, shards, mesh)
    shardings = TrainState(replicated, shards, moments)  # type: ignore[arg-type]
    step = jax.jit(
        make_train_step(decoder, optimizer, special_tokens, TRAINING, mesh, rate),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated),
        donate_argnums=0,
    )
    state = jax.device_put(TrainState(jnp.int32(0), params, optimizer.init(params)), shardings)

    def run(rows: np.ndarray) -> float:
        nonlocal state
        state, metrics = step(state, jax.device_put(rows, batch_sharding(mesh)))
        return float(metrics["loss"])

    return run


def peer_step(folder: Path, mode: str, dtype: str) -> Step:
    """A plain, well-set PyTorch loop over the checkpoint in `folder`, `eager` or `compile`."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    o, peak = TRAINING.optimizer, TRAINING.lr_schedule.peak
    decayed: list[Any] = []
    spared: list[Any] = []
    for name, p in model.named_parameters():
        (spared if p.ndim < 2 or "embed" in name or "conv1d" in name else decayed).append(p)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, peak, (o.b1, o.b2), o.eps, weight_decay=o.weight_decay, fused=True
    )

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), rows[:, 1:].flatten()
        )

    forward = torch.compile(loss_of) if mode == "compile" else loss_of

    def run(rows: np.ndarray) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = forward(torch.from_numpy(rows).long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return run


def timed(step: Step, rows: np.ndarray) -> tuple[float, float]:
    """The loss of a step, and its seconds."""
    start = time.perf_counter()
    loss = step(rows)
    return loss, time.perf_counter() - start


def fastest(makers: Mapping[str, Callable[[], Step]], shape: Shape) -> str:
    """The name of the step whose best of some turns is the least."""
    seconds = {}
    for name, make in makers.items():
        step = make()
        turns = [timed(step, shape.batch(i))[1] for i in range(WARM_UP + 3)]
        seconds[name] = min(turns[WARM_UP:])
    return min(seconds, key=seconds.__getitem__)


def compare(shape: Shape, steps: int, modes: list[str], dtypes: list[str]) -> dict:
    """All of one shape."""
    decoder = shape.decoder("float32")
    params = jax.tree.map(np.asarray, jax.jit(decoder.init)(jax.random.key(0)))
    ours = {t: functools.partial(our_step, shape.decoder(t), params) for t in dtypes}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_json(folder / "config.json", model_config(decoder, 0, 1, shape.length))
        write_weights(folder, decoder, params, 2**62)
        peers = {
            f"{mode}, {dtype}": functools.partial(peer_step, folder, mode, dtype)
            for mode in modes
            for dtype in dtypes
        }
        chosen, chosen_peer = fastest(ours, shape), fastest(peers, shape)
        step, peer = ours[chosen](), peers[chosen_peer]()
    pairs = [
        (timed(step, rows), timed(peer, rows)) for rows in (shape.batch(i) for i in range(steps))
    ]
    seconds = [(a, b) for (_, a), (_, b) in pairs[WARM_UP:]]
    tokens = shape.rows * shape.length
    return {
        "shape": dataclasses.asdict(shape),
        "processor": processor(),
        "ours": chosen,
        "ours_tokens_per_second": round(tokens / statistics.median(a for a, _ in seconds)),
        "peer": f"Hugging Face {shape.family}, PyTorch, {chosen_peer}",
        "peer_tokens_per_second": round(tokens / statistics.median(b for _, b in seconds)),
        "ratio": round(statistics.median(b / a for a, b in seconds), 3),
        "ratio_quartiles": np.quantile([b / a for a, b in seconds], [0.25, 0.75]).round(3).tolist(),
        "largest_loss_difference": round(max(abs(a - b) for (a, _), (b, _) in pairs), 4),
        "last_losses": [round(loss, 4) for loss, _ in pairs[-1]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--peers", nargs="+", default=["eager", "compile"])
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=["float32", "bfloat16"],
        help="types each side may multiply in (default: what this processor multiplies)",
    )
    parser.add_argument(
        "--cpu_devices",
        type=int,
        default=available_cores(),
        help="devices that the batch is split over (default: one a core, as main has it)",
    )
    options = parser.parse_args()
    experts = any(SHAPES[name].family == "Olmoe" for name in options.shapes)
    set_cpu_devices(options.cpu_devices, many_collectives=experts)
    if options.dtypes is None:
        native = multiplies_bfloat16(jax.local_devices()[0])
        options.dtypes = ["float32", "bfloat16"] if native else ["float32"]
    for name in options.shapes:
        result = compare(SHAPES[name], options.steps, options.peers, options.dtypes)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    prefer_huge_pages()
    main()
