"""Scores the same documents with the same two models here and in transformers on PyTorch.

Three ways, run in turns and compared run by run:
  ours      packed rows, both models in one call;
  sorted    transformers, padded batches of windows sorted by length;
  unsorted  transformers, padded batches of windows in the order of the corpus.
All compute in the type that the processor multiplies, bfloat16 or float32, with float32 losses, in
this process, hence with the same allocator. The peer gets the batch size that is fastest for it.
Prints one JSON line for each pair of models.

    python tools/benchmark_scoring.py [--corpus FOLDER_OF_JSONL_ZST] [--dtype float32]
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pyarrow as pa
import torch
import transformers
from processor import processor
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from frame_jax.config.scoring import ScoringConfig
from frame_jax.models.hugging_face.weights import import_checkpoint
from frame_jax.parallel.cpu_devices import set_cpu_devices
from frame_jax.parallel.host import available_cores
from frame_jax.parallel.hardware import multiplies_bfloat16
from frame_jax.scoring.documents import POOL_ROWS, score_documents
from frame_jax.scoring.packing import make_batches, pack_windows
from frame_jax.scoring.scorer import Scorer
from frame_jax.scoring.windows import Window, windows

BOS = 0
SHAPES = {  # width x layers: feed-forward width, heads, key heads
    "256x6": (704, 4, 2),
    "512x8": (1408, 8, 4),
}
PEER_BATCHES = (8, 16, 32)  # windows; the fastest is used

Scored = tuple[np.ndarray, float]  # [models, documents] NLL sums, seconds


def read_texts(folder: Path, every: int, offset: int = 0) -> Iterator[str]:
    """The text of each `every`-th document of each file."""
    for path in sorted(folder.glob("*.jsonl.zst")):
        with pa.input_stream(path, compression="zstd") as stream:
            for line in itertools.islice(io.TextIOWrapper(stream, "utf-8"), offset, None, every):
                yield json.loads(line)["text"]


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|bos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def make_peer(shape: str, vocab_size: int, context: int, seed: int, dtype: str) -> Any:
    """A transformers Llama with random weights of this type."""
    width, layers = map(int, shape.split("x"))
    feed_forward, heads, key_heads = SHAPES[shape]
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        initializer_range=width**-0.5,
    )
    peer = transformers.LlamaForCausalLM(config).eval()
    # `to` would round the rotary frequencies as well, which a loaded checkpoint keeps in float32.
    frequencies = peer.model.rotary_emb.inv_freq
    peer.to(getattr(torch, dtype)).model.rotary_emb.inv_freq = frequencies
    return peer


def score_peer(peers: list[Any], ordered: list[Window], rows: int, documents: int) -> Scored:
    """Scores windows in the order given, `rows` a batch, padded to the longest of the batch."""
    started = time.perf_counter()
    sums = np.zeros((len(peers), documents))
    with torch.inference_mode():
        for start in range(0, len(ordered), rows):
            group = ordered[start : start + rows]
            longest = max(window.length for window in group)
            ids = torch.zeros(len(group), longest, dtype=torch.long)
            targets = torch.full((len(group), longest), -100)
            mask = torch.zeros(len(group), longest, dtype=torch.long)
            for row, window in enumerate(group):
                ids[row, : window.length] = torch.from_numpy(window.ids[:-1])
                targets[row, : window.length] = torch.from_numpy(window.ids[1:])
                mask[row, : window.length] = 1
            for model, peer in enumerate(peers):
                logits = peer(input_ids=ids, attention_mask=mask, use_cache=False).logits
                nll = torch.nn.functional.cross_entropy(
                    logits.float().flatten(0, 1), targets.flatten(), reduction="none"
                )
                window_nll = nll.view_as(targets).double().sum(dim=1).numpy()
                np.add.at(sums[model], [window.document for window in group], window_nll)
    return sums, time.perf_counter() - started


def fastest_batch(peers: list[Any], ordered: list[Window], documents: int) -> int:
    """The batch size at which the peer scores a share of the windows fastest.

    The share is neighbours, which need as little padding as they do in the whole.
    """
    run = max(PEER_BATCHES)
    start = max(0, len(ordered) - run) // 2
    share = ordered[start : start + run]
    score_peer(peers, share[:8], 8, documents)
    seconds = {rows: score_peer(peers, share, rows, documents)[1] for rows in PEER_BATCHES}
    return min(seconds, key=seconds.__getitem__)


def compare(
    shapes: list[str], documents: list[np.ndarray], vocab_size: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Alternating runs of the three ways for one pair of models."""
    peers = [
        make_peer(shape, vocab_size, options.context, i, options.dtype)
        for i, shape in enumerate(shapes)
    ]
    ours = []
    for peer in peers:
        with tempfile.TemporaryDirectory() as folder:
            peer.save_pretrained(folder)
            decoder, params = import_checkpoint(Path(folder), longest=options.context)
            ours.append((dataclasses.replace(decoder, compute_dtype=options.dtype), params))
    scorer = Scorer(
        ours,
        ScoringConfig(
            options.context, per_device_batch_size=options.rows, loss_chunk=options.loss_chunk
        ),
    )

    def score_ours() -> Scored:
        started = time.perf_counter()
        scores = score_documents(scorer, documents, bos_id=BOS)
        return scores.nll, time.perf_counter() - started

    in_order = [
        window
        for index, tokens in enumerate(documents)
        for window in windows(index, tokens, BOS, options.context, 0)
    ]
    by_length = sorted(in_order, key=lambda window: window.length)
    sizes = {
        name: fastest_batch(peers, ordered, len(documents))
        for name, ordered in (("sorted", by_length), ("unsorted", in_order))
    }
    ways: dict[str, Callable[[], Scored]] = {
        "ours": score_ours,
        "sorted": lambda: score_peer(peers, by_length, sizes["sorted"], len(documents)),
        "unsorted": lambda: score_peer(peers, in_order, sizes["unsorted"], len(documents)),
    }
    score_ours()  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    nll: dict[str, np.ndarray] = {}
    for repetition in range(options.repetitions):
        for name, way in ways.items():
            nll[name], elapsed = way()
            seconds[name].append(elapsed)
            print(f"  run {repetition + 1} {name}: {elapsed:.1f} s", file=sys.stderr, flush=True)
    tokens = sum(map(len, documents))
    length = scorer.row_length
    rows = list(
        make_batches(
            pack_windows(in_order, length, POOL_ROWS),
            scorer.rows * scorer.context // length,
            length,
        )
    )
    result: dict[str, Any] = {"models": shapes, "documents": len(documents), "tokens": tokens}
    result |= {"dtype": options.dtype, "processor": processor()}
    for name, times in seconds.items():
        middle = statistics.median(times)
        result[f"{name}_documents_per_second"] = round(len(documents) / middle, 2)
        result[f"{name}_tokens_per_second"] = round(tokens / middle)
    for name in ("sorted", "unsorted"):
        pairs = zip(seconds[name], seconds["ours"], strict=True)
        result[f"ratio_{name}"] = round(statistics.median(a / b for a, b in pairs), 3)
    difference = np.abs(nll["ours"] / nll["sorted"] - 1).max()
    return result | {
        "packing": round(sum(b.tokens for b in rows) / (len(rows) * rows[0].inputs.size), 4),
        "largest_nll_difference": float(f"{difference:.2e}"),
        "peer_batches": sizes,
        "seconds": {name: [round(t, 2) for t in times] for name, times in seconds.items()},
        "context": options.context,
        "vocabulary": vocab_size,
        "threads": torch.get_num_threads(),
        "preload": os.environ.get("LD_PRELOAD", ""),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--corpus",
        type=Path,
        default=Path("../shared/corpus"),
        help="folder of *.jsonl.zst, one JSON object with a `text` a line (default: %(default)s)",
    )
    parser.add_argument("--pairs", nargs="+", default=["256x6,512x8"], help="weak,strong shapes")
    parser.add_argument("--every", type=int, default=400, help="take each n-th document of a file")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json; default trains one")
    parser.add_argument("--rows", type=int, default=4, help="contexts of tokens in a batch")
    parser.add_argument(
        "--cpu_devices",
        type=int,
        default=available_cores(),
        help="devices that a batch is split over (default: one a core, as main has it)",
    )
    parser.add_argument("--loss-chunk", type=int, default=256)
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="default: bfloat16 where the processor multiplies it",
    )
    options = parser.parse_args()
    set_cpu_devices(options.cpu_devices, many_collectives=False)
    if options.dtype is None:
        native = multiplies_bfloat16(jax.local_devices()[0])
        options.dtype = "bfloat16" if native else "float32"
    if not any(options.corpus.glob("*.jsonl.zst")):
        parser.error(f"--corpus: {options.corpus} holds no *.jsonl.zst")
    if options.tokenizer:
        tokenizer = Tokenizer.from_file(str(options.tokenizer))
    else:
        tokenizer = train_tokenizer(read_texts(options.corpus, 20, 5), options.vocabulary)
    texts = list(read_texts(options.corpus, options.every))
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    documents = [np.array(encoding.ids, np.uint32) for encoding in encodings]
    for pair in options.pairs:
        result = compare(pair.split(","), documents, tokenizer.get_vocab_size(), options)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
