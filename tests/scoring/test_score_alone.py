"""Any two checkpoints rank a corpus by themselves, or are refused before work is done for them."""

import json

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy_decoder import document_nll
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from frame_jax.config.models import ModelConfig
from frame_jax.main import main
from frame_jax.models.functional import Decoder
from frame_jax.models.hugging_face.export import export_checkpoint

CONTEXT, OVERLAP = 32, 8
LETTERS = "abcdefghij"
DOCUMENTS = {f"d{n}": "".join(np.random.default_rng(n).choice([*LETTERS], n)) for n in range(1, 90)}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A tokenizer of one token a byte, and two exported models that know the ten letters."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=257, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([LETTERS], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    known = [tokenizer.token_to_id(letter) for letter in LETTERS]
    found = {}
    for seed, (name, layers) in enumerate({"weak": 1, "strong": 2}.items()):
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "num_kv_heads": 2}
        config = ModelConfig(num_layers=layers, tie_embeddings=False, **shape)
        decoder = Decoder(config, 257)
        params = jax.tree.map(np.array, decoder.init(jax.random.key(seed)))
        params["embedding"] *= 30
        params["embedding"][:, 0] = 2
        params["output"][known, 0] += 1
        export_checkpoint(
            *(folder / name, decoder, params),
            tokenizer=folder / "tokenizer.json",
            bos_id=0,
            eos_id=0,
            context=CONTEXT,
            shard_bytes=20_000,
        )
        found[name] = decoder, params
    return folder, found


def arguments(folder, tmp_path, **changed):
    settings = {
        "config": "configs/score_only.yaml",
        "until": "partition",
        "run_directory": tmp_path / "run",
        "corpus.sources": json.dumps([{"kind": "jsonl", "path": str(tmp_path / "c.jsonl")}]),
        "corpus.parts": 2,
        "tokenizer.path": folder / "weak" / "tokenizer.json",
        "reference.weak.checkpoint": folder / "weak",
        "reference.strong.checkpoint": folder / "strong",
        "scoring.context": CONTEXT,
        "scoring.overlap": OVERLAP,
        "scoring.compute_dtype": "float32",
    } | changed
    rows = [{"id": name, "text": text} for name, text in DOCUMENTS.items()]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    return [f"--{key}={value}" for key, value in settings.items()]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_corpus_is_ranked_as_a_float64_decoder_ranks_it(checkpoints, tmp_path, kind):
    folder, references = checkpoints
    source = json.dumps([{"kind": kind, "path": str(tmp_path / f"c.{kind}")}])
    assert main(arguments(folder, tmp_path, **{"corpus.sources": source})) == 0
    table = pq.read_table(tmp_path / "run/quadrants/assignment.parquet").to_pylist()
    assert {row["doc_id"] for row in table} == DOCUMENTS.keys()
    assert {row["quadrant"] for row in table} == {"Q1", "Q2", "Q3", "Q4"}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for row in table[::7]:
        ids = tokenizer.encode(DOCUMENTS[row["doc_id"]]).ids
        weak, strong = (
            np.exp(document_nll(decoder.config, params, ids, 0, CONTEXT, OVERLAP) / len(ids))
            for decoder, params in references.values()
        )
        np.testing.assert_allclose(row["ppl"], strong, rtol=1e-4)
        np.testing.assert_allclose(row["pd"], (weak - strong) / weak, rtol=1e-3, atol=1e-4)


REFUSED = {
    "no folder": ({"reference.weak.checkpoint": "/nowhere"}, "there is no folder /nowhere"),
    "too few positions": ({"scoring.context": CONTEXT + 1}, f"at most {CONTEXT} tokens"),
    "no tokenizer named": ({"tokenizer.path": "null"}, "set tokenizer.path to"),
    "another tokenizer": ({"tokenizer.path": "other.json"}, "only the run has 1 tokens ('ab')"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_unfit_checkpoint_is_refused_before_the_corpus_is_read(
    checkpoints, tmp_path, capsys, case
):
    folder, (changed, expected) = checkpoints[0], REFUSED[case]
    other = json.loads((folder / "tokenizer.json").read_text())
    other["model"]["vocab"]["ab"] = 257
    other["model"]["merges"].append(["a", "b"])
    (tmp_path / "other.json").write_text(json.dumps(other))
    changed = {k: tmp_path / v if v == "other.json" else v for k, v in changed.items()}
    assert main(arguments(folder, tmp_path, **changed)) == 2
    message = capsys.readouterr().err
    assert expected in message and message.startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_a_lost_tensor_is_refused_before_the_corpus_is_read(checkpoints, tmp_path, capsys):
    folder = checkpoints[0]
    lost = tmp_path / "lost"
    lost.mkdir()
    for path in (folder / "strong").iterdir():
        (lost / path.name).write_bytes(path.read_bytes())
    config = json.loads((lost / "config.json").read_text())
    (lost / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    changed = {"reference.strong.checkpoint": lost}
    assert main(arguments(folder, tmp_path, **changed)) == 2
    assert "missing: model.layers.2.self_attn.q_proj.weight" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
