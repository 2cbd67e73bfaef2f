"""What the schedule, the data and the checkpoints cost a training run; one JSON line.

    python tools/benchmark_overheads.py

Trains one small model with the trainer itself, in turns: in one stage, in the four smooth stages of
FRAME, and in one stage with a checkpoint every few seconds. Ratios are medians over the turns.

  four_stages_over_one          tokens a second, compilation and warm-up left out
  share_waiting_for_data        seconds that steps waited for their rows, over their seconds
  share_of_checkpoints          time that checkpoints took from training, every `every` seconds
  share_at_default_interval     the same, at the default of training.checkpoint_seconds
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from frame_jax.config.curriculum import CurriculumConfig
from frame_jax.config.models import ModelConfig
from frame_jax.config.parallel import ParallelConfig
from frame_jax.config.quadrants import AxesConfig
from frame_jax.config.training import TrainingConfig
from frame_jax.curriculum.presets import expand_curriculum
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.curriculum.stages import resolve_curriculum
from frame_jax.models.transformer import Decoder
from frame_jax.parallel.host import prefer_huge_pages
from frame_jax.records import write_tokens
from frame_jax.run.special_tokens import SpecialTokens
from frame_jax.training.trainer import train
from frame_jax.training.training_job import TrainingJob

VOCAB, LENGTH, BATCH = 8192, 256, 16
BOS, EOS = 1, 2
AXES = AxesConfig()
MODEL = ModelConfig(hidden_size=256, intermediate_size=704, num_layers=4)
Preset = Literal["random", "frame"]
WARM_UP = 12  # steps left out at the start of each run: compilation, and finding the interval


def write_rows(root: Path, rows: int) -> dict[str, list[Path]]:
    """So many rows of made-up tokens in each quadrant."""
    random, parts = np.random.default_rng(0), {}
    for quadrant in AXES.quadrants:
        parts[quadrant] = [root / quadrant / "part-00000-of-00001.arrayrecord"]
        with write_tokens(parts[quadrant][0]) as writer:
            for _ in range(rows):
                writer.append(np.minimum(random.zipf(1.2, LENGTH + 1) + 2, VOCAB - 1))
    return parts


class Timing(NamedTuple):
    """A run after its warm-up, in seconds.

    Attributes:
        elapsed: All of it.
        in_steps: In training steps.
        waiting: Of those, waiting for rows.
    """

    elapsed: float
    in_steps: float
    waiting: float


def run(
    root: Path,
    parts: dict[str, list[Path]],
    rows: int,
    preset: Preset = "random",
    checkpoint_seconds: float = 1e9,
) -> Timing:
    """Trains through all rows in the order of a preset."""
    schedule = resolve_curriculum(
        expand_curriculum(CurriculumConfig(preset=preset), AXES),
        dict.fromkeys(AXES.quadrants, rows),
        batch_size=BATCH,
        sequence_length=LENGTH,
    )
    with tempfile.TemporaryDirectory(dir=root) as folder:
        job = TrainingJob(
            name=preset,
            folder=Path(folder),
            decoder=Decoder(MODEL, VOCAB),
            training=TrainingConfig(
                batch_size=BATCH, milestones=1, checkpoint_seconds=checkpoint_seconds
            ),
            parallel=ParallelConfig(),
            special_tokens=SpecialTokens(BOS, EOS, VOCAB),
            selection=SelectionMap(schedule, seed=0),
            parts=parts,
            sequence_length=LENGTH,
            fingerprint="benchmark",
        )
        train(job)
        steps = [json.loads(line) for line in (job.folder / "metrics.jsonl").open()]
    in_steps = np.cumsum([step["seconds"] or 0 for step in steps])
    elapsed = in_steps[WARM_UP:] / [step["goodput"] for step in steps[WARM_UP:]]
    waiting = sum(step["data_seconds"] for step in steps[WARM_UP + 1 :])
    return Timing(elapsed[-1] - elapsed[0], in_steps[-1] - in_steps[WARM_UP], waiting)


def compare(rows: int, turns: int, every: float) -> dict[str, Any]:
    """All ways in turns."""
    found: dict[str, list[Timing]] = {"one": [], "four": [], "saved": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        parts = write_rows(root, rows)
        for turn in range(turns):
            ways: list[tuple[str, dict[str, Any]]] = [
                ("one", {}),
                ("four", {"preset": "frame"}),
                ("saved", {"checkpoint_seconds": every}),
            ]
            for name, settings in ways[:: 1 if turn % 2 == 0 else -1]:
                found[name].append(run(root, parts, rows, **settings))
    one, four, saved = found.values()
    pairs = zip(saved, one, strict=True)
    extra = statistics.median((a.elapsed - b.elapsed) / b.elapsed for a, b in pairs)
    return {
        "four_stages_over_one": round(
            statistics.median(a.in_steps / b.in_steps for a, b in zip(one, four, strict=True)), 4
        ),
        "share_waiting_for_data": round(statistics.median(x.waiting / x.in_steps for x in four), 5),
        "every": every,
        "share_of_checkpoints": round(extra, 4),
        "share_at_default_interval": round(extra * every / TrainingConfig().checkpoint_seconds, 5),
        "seconds": {name: [round(x.elapsed, 2) for x in times] for name, times in found.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=400, help="rows of each quadrant")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between checkpoints")
    options = parser.parse_args()
    print(json.dumps(compare(options.rows, options.turns, options.every)))


if __name__ == "__main__":
    prefer_huge_pages()
    main()
