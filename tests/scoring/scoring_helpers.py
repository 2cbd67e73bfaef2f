"""A tiny corpus and two tiny models that know a little."""

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frame_jax.config.corpus import CorpusConfig, SourceConfig
from frame_jax.config.models import ModelConfig
from frame_jax.config.run import RunConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.models.transformer import Decoder, write_description
from frame_jax.records import write_tokens
from frame_jax.run.directory import part_name
from frame_jax.training.checkpointer import Checkpointer

VOCAB, BOS, FREQUENT = 96, 1, 12
# In bfloat16 a sum that rounds the other way in another arrangement moves a document's NLL sum by
# at most this share; 1.5e-4 was the largest seen, with 6 layers of width 256.
BFLOAT16_TOLERANCE = 1e-3
LENGTHS = (1, 0, 2, 31, 32, 33, 64, 5, 150, 97, 7, 40, 3, 1, 88, 61)


def make_model(seed, dtype="float32", **shape):
    """A decoder that knows which tokens are frequent, hence beats the uniform distribution."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 4} | shape
    decoder = Decoder(ModelConfig(num_kv_heads=2, tie_embeddings=False, **shape), VOCAB, dtype)
    params = jax.tree.map(np.array, decoder.init(jax.random.key(seed)))
    params["embedding"] *= 30
    params["embedding"][:, 0] = 2
    params["output"][:FREQUENT, 0] += 1
    return decoder, params


def make_documents(seed=0, lengths=LENGTHS):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, FREQUENT, n).astype(np.uint32) for n in lengths]


def write_part(directory, index, count):
    documents = make_documents(seed=index)
    splits = ["train", "train", "held_out", "reference"]
    directory.tokens.mkdir(exist_ok=True)
    with write_tokens(directory.tokens / part_name(index, count, ".arrayrecord")) as writer:
        for tokens in documents:
            writer.append(tokens)
    columns = {
        "doc_id": [f"{index}/{row}" for row in range(len(documents))],
        "part": np.full(len(documents), index, np.int32),
        "row": np.arange(len(documents)),
        "split": [splits[row % 4] for row in range(len(documents))],
        "tokens": [len(tokens) for tokens in documents],
        "bytes": [4 * len(tokens) for tokens in documents],
    }
    pq.write_table(pa.table(columns), directory.tokens / part_name(index, count, ".parquet"))


def write_model(directory, role, decoder, params):
    """As the reference phase leaves a model."""
    folder = directory.reference(role)
    write_description(folder, decoder)
    checkpointer = Checkpointer(folder / "checkpoints", [], "fingerprint")
    checkpointer.save(3, params, {"unused": np.zeros(1)}, {})
    checkpointer.close()


def run_config(root, **scoring):
    settings = {"context": 32, "overlap": 8, "compute_dtype": "float32"} | scoring
    return RunConfig(
        run_directory=str(root),
        corpus=CorpusConfig([SourceConfig("python_library")]),
        scoring=ScoringConfig(**settings),
    )
