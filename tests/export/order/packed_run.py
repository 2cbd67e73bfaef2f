"""A run directory as the partition phase leaves it, of documents of random ids."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.config.corpus import CorpusConfig, SourceConfig
from frame_jax.config.curriculum import CurriculumConfig
from frame_jax.config.models import ModelConfig
from frame_jax.config.quadrants import PartitionConfig, RowsConfig
from frame_jax.config.run import RunConfig
from frame_jax.config.training import PretrainConfig, TrainingConfig
from frame_jax.config.workers import WorkersConfig
from frame_jax.main import write_config
from frame_jax.quadrants.rows import training_conditions, write_quadrant_rows
from frame_jax.records import TokenReader, write_tokens
from frame_jax.run.directory import RunDirectory, list_parts, part_name, write_json

BOS, EOS, VOCAB = 1, 2, 120
QUADRANTS = ("Q1", "Q2", "Q3", "Q4")
LENGTH, BATCH, PARTS = 32, 8, 2
CURRICULA = {
    "frame": CurriculumConfig(preset="frame", width=0.15),
    "twice": CurriculumConfig(preset="pdpc", epochs=2),
    "again": CurriculumConfig(preset="random_again"),
}


def make_run(
    root: Path,
    documents: int = 150,
    packing: str = "concat",
    steps: int | None = None,
    copies: tuple[int, ...] = (1,),
) -> tuple[RunConfig, RunDirectory]:
    """Documents of 1 to 90 tokens, a tenth held out, the others with so many copies in turn."""
    directory = RunDirectory(root)
    special = {"bos_id": BOS, "eos_id": EOS, "vocab_size": VOCAB}
    write_json(directory.tokenizer.with_name("special_tokens.json"), special)
    model = ModelConfig(
        hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1
    )
    training = TrainingConfig(
        batch_size=BATCH, steps=steps, milestones=2, compute_dtype="float32", log_every=1
    )
    rows = RowsConfig(sequence_length=LENGTH, parts=PARTS, packing=packing)  # type: ignore[arg-type]
    config = RunConfig(
        run_directory=str(root),
        corpus=CorpusConfig([SourceConfig("python_library")]),
        partition=PartitionConfig(rows=rows),
        pretrain=PretrainConfig(model, training=training),
        curricula=CURRICULA,
    )
    write_config(config, directory)
    rng, lines = np.random.default_rng(documents), []
    for part in range(PARTS):
        with write_tokens(directory.tokens / part_name(part, PARTS, ".arrayrecord")) as writer:
            for row in range(documents // PARTS):
                ids = rng.integers(3, VOCAB, int(rng.integers(1, 90)))
                writer.append(ids)
                number = len(lines)
                lines.append(
                    {
                        "doc_id": f"d{number}",
                        "ppl": 1.0 + number,
                        "pd": 0.1,
                        "quadrant": QUADRANTS[number % 4],
                        "split": "held_out" if number % 10 == 9 else "train",
                        "copies": 0 if number % 10 == 9 else copies[number % len(copies)],
                        "source": "s",
                        "domain": "prose",
                        "language": "en",
                        "tokens": len(ids),
                        "bytes": len(ids),
                        "part": part,
                        "row": row,
                    }
                )
    directory.quadrants.mkdir()
    pq.write_table(pa.Table.from_pylist(lines), directory.assignment)
    conditions = training_conditions(QUADRANTS)
    tables, workers = [directory.assignment], WorkersConfig()
    write_quadrant_rows(rows, directory, directory.quadrants, tables, conditions, 0, workers)
    write_json(directory.marker("partition"), {"fingerprint": "rows", "inputs": {}})
    for name in CURRICULA:
        write_json(
            directory.marker(f"pretrain-{name}"),
            {"fingerprint": name, "inputs": {"partition": "rows"}},
        )
    return config, directory


def rows_of(directory: RunDirectory, quadrant: str) -> np.ndarray:
    """All rows of a quadrant: uint32 [rows, LENGTH + 1]."""
    paths = list_parts(directory.quadrants / quadrant, ".arrayrecord")
    readers = [TokenReader(path) for path in paths]
    return np.array([row for reader in readers for row in reader.read(range(len(reader)))])
