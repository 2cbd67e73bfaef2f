"""A trained-looking arm in milliseconds: tokenizer, random model, checkpoints, curriculum."""

from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import jax
import numpy as np

from frame_jax.config.corpus import CorpusConfig, SourceConfig
from frame_jax.config.models import ModelConfig
from frame_jax.config.run import RunConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.corpus.tokenizer_training import BOS, EOS, train_tokenizer
from frame_jax.models.transformer import Decoder, write_description
from frame_jax.run.directory import RunDirectory, write_json
from frame_jax.run.trial_record import StageRecord, TrialRecord, write_trial_record
from frame_jax.training.checkpointer import Checkpointer

CONTEXT, VOCAB_SIZE, PADDED = 64, 380, 384
STEPS = (3, 6)  # the ends of stages Q3 and Q1
TEXT = "\n".join(topics[name] for name in sorted(topics)[:20])


def write_tokenizer(directory: RunDirectory) -> None:
    """A byte-level tokenizer of fewer tokens than the model has rows."""
    directory.tokenizer.parent.mkdir(parents=True)
    backend = train_tokenizer([TEXT], VOCAB_SIZE)
    backend.save(str(directory.tokenizer))
    special = {"bos_id": backend.token_to_id(BOS), "eos_id": backend.token_to_id(EOS)}
    write_json(
        directory.tokenizer.with_name("special_tokens.json"),
        {**special, "vocab_size": backend.get_vocab_size()},
    )


def random_params(decoder: Decoder, seed: int) -> Any:
    """Weights under which predictions differ clearly from token to token; no trivial norm."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(np.array, decoder.init(jax.random.key(seed)))
    params["embedding"] *= 20
    if "output" in params:
        params["output"] *= 20
    for tree in (params, *params["layers"].values()):
        for name in tree:
            if name.endswith(("norm", "bias")):
                tree[name] = tree[name] + 0.3 * rng.standard_normal(tree[name].shape, np.float32)
    return params


def make_arm(root: Path, name: str = "frame", **shape: Any) -> tuple[RunDirectory, Decoder, Any]:
    """A run directory with one arm, its decoder, and {step: parameters}."""
    directory = RunDirectory(root)
    if not directory.tokenizer.exists():
        write_tokenizer(directory)
    shape = {"hidden_size": 48, "intermediate_size": 80, "num_layers": 3, "num_heads": 6} | shape
    decoder = Decoder(ModelConfig(**{"num_kv_heads": 2, "head_dim": 8} | shape), PADDED, "float32")
    folder = directory.pretrain(name)
    write_description(folder, decoder)
    params = {step: random_params(decoder, step) for step in STEPS}
    checkpointer = Checkpointer(folder / "checkpoints", STEPS, "fingerprint")
    for step, value in params.items():
        checkpointer.save(step, value, {"unused": np.zeros(1)}, {})
    checkpointer.close()
    stages = StageRecord("Q3", 0, 12, 0, 3), StageRecord("Q1", 12, 24, 3, 6)
    record = TrialRecord(STEPS[-1], 4, CONTEXT, {"Q1": 12, "Q3": 12}, STEPS, (), stages)
    write_trial_record(folder, record)
    return directory, decoder, params


def make_config(directory: RunDirectory, **settings: Any) -> RunConfig:
    """A config that fits the arm."""
    return RunConfig(
        run_directory=str(directory.root),
        corpus=CorpusConfig(sources=[SourceConfig(kind="python_library")]),
        scoring=ScoringConfig(context=CONTEXT, per_device_batch_size=2, compute_dtype="float32"),
        **settings,
    )
