"""The training benchmark trains what it says."""

from pathlib import Path

from frame_jax.config.file import load
from tools.benchmark_train import SHAPES


def test_the_smallest_shape_is_the_quickstart() -> None:
    config = load(Path("configs/quickstart.yaml"))
    shape, rows = SHAPES["quickstart"], config.partition.rows
    assert shape.decoder("float32").config == config.pretrain.model
    assert shape.vocab_size == config.tokenizer.vocab_size
    assert shape.rows == config.pretrain.training.batch_size
    assert shape.length == rows.sequence_length
