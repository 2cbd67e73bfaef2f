"""Row files of a small vocabulary and jobs over them, for the trainer's tests."""

from pathlib import Path

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
from frame_jax.records import write_tokens
from frame_jax.run.special_tokens import SpecialTokens
from frame_jax.training.training_job import TrainingJob

VOCAB, LENGTH, ROWS, BOS, EOS = 128, 32, 22, 1, 2


def write_rows(root: Path) -> dict[str, list[Path]]:
    """22 rows in each of four quadrants: 88 rows, which no batch of 16 divides."""
    random, parts = np.random.default_rng(0), {}
    for quadrant in AxesConfig().quadrants:
        path = root / quadrant / "part-00000-of-00001.arrayrecord"
        with write_tokens(path) as writer:
            for _ in range(ROWS):
                row = np.minimum(2 + random.geometric(0.15, LENGTH + 1), VOCAB - 1)
                row[[0, LENGTH // 2]] = BOS
                row[LENGTH // 2 - 1] = EOS
                writer.append(row)
        parts[quadrant] = [path]
    return parts


def make_job(
    root: Path,
    *,
    folder: str = "run",
    training: TrainingConfig | None = None,
    parallel: ParallelConfig | None = None,
    fingerprint: str = "f",
) -> TrainingJob:
    training = training or TrainingConfig(batch_size=16, compute_dtype="float32", milestones=2)
    axes = AxesConfig()
    schedule = resolve_curriculum(
        expand_curriculum(CurriculumConfig(preset="frame"), axes),
        {quadrant: ROWS for quadrant in axes.quadrants},
        batch_size=training.batch_size,
        sequence_length=LENGTH,
    )
    dtype = "bfloat16" if training.compute_dtype == "auto" else training.compute_dtype
    model = ModelConfig(
        hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2
    )
    return TrainingJob(
        name="test",
        folder=root / folder,
        decoder=Decoder(model, VOCAB, dtype),
        training=training,
        parallel=parallel or ParallelConfig(),
        special_tokens=SpecialTokens(BOS, EOS, VOCAB),
        selection=SelectionMap(schedule, seed=0),
        parts={
            quadrant: [root / quadrant / "part-00000-of-00001.arrayrecord"]
            for quadrant in axes.quadrants
        },
        sequence_length=LENGTH,
        fingerprint=fingerprint,
    )
