"""Row files of a small vocabulary and jobs over them, for the trainer's tests."""

from pathlib import Path

import numpy as np

from frame_jax.config.curriculum import CurriculumConfig
from frame_jax.config.models import ModelConfig
from frame_jax.config.parallel import ParallelConfig
from frame_jax.config.quadrants import AxesConfig
from frame_jax.config.training import TrainingConfig
from frame_jax.curriculum.presets import expand
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.curriculum.stages import resolve
from frame_jax.models.functional import Decoder
from frame_jax.records import write_tokens
from frame_jax.training.job import Job
from frame_jax.training.step import Specials

VOCAB, LENGTH, ROWS, BOS, EOS = 128, 32, 22, 1, 2


def write_rows(root: Path) -> dict[str, list[Path]]:
    """22 rows in each of four quadrants: 88 rows, which no batch of 16 divides."""
    random, parts = np.random.default_rng(0), {}
    for cell in AxesConfig().cells:
        path = root / cell / "part-00000-of-00001.arrayrecord"
        with write_tokens(path) as writer:
            for _ in range(ROWS):
                row = np.minimum(2 + random.geometric(0.15, LENGTH + 1), VOCAB - 1)
                row[[0, LENGTH // 2]] = BOS
                row[LENGTH // 2 - 1] = EOS
                writer.append(row)
        parts[cell] = [path]
    return parts


def make_job(
    root: Path,
    *,
    folder: str = "run",
    training: TrainingConfig | None = None,
    parallel: ParallelConfig | None = None,
    fingerprint: str = "f",
) -> Job:
    training = training or TrainingConfig(batch_rows=16, compute_dtype="float32", milestones=2)
    axes = AxesConfig()
    schedule = resolve(
        expand(CurriculumConfig(preset="frame"), axes),
        {cell: ROWS for cell in axes.cells},
        batch_rows=training.batch_rows,
        sequence_length=LENGTH,
    )
    dtype = "bfloat16" if training.compute_dtype == "auto" else training.compute_dtype
    model = ModelConfig(
        hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2
    )
    return Job(
        name="test",
        folder=root / folder,
        decoder=Decoder(model, VOCAB, dtype),
        training=training,
        parallel=parallel or ParallelConfig(),
        specials=Specials(BOS, EOS),
        selection=SelectionMap(schedule, seed=0),
        parts={cell: [root / cell / "part-00000-of-00001.arrayrecord"] for cell in axes.cells},
        sequence_length=LENGTH,
        seed=0,
        fingerprint=fingerprint,
    )
