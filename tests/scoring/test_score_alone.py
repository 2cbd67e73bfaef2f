"""Any two checkpoints rank a corpus by themselves, or are refused before work is done for them."""

import json
import shutil

import fsspec
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from frame_jax.config.models import ModelConfig
from frame_jax.main import main
from frame_jax.models.hugging_face.export import export_checkpoint
from frame_jax.models.transformer import Decoder
from frame_jax.run.directory import RunDirectory, list_parts, read_json
from frame_jax.run.special_tokens import SpecialTokens
from tests.scoring.numpy_decoder import document_nll

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
    found = {
        name: write_model(folder / name, folder / "tokenizer.json", seed, layers)
        for seed, (name, layers) in enumerate({"weak": 1, "strong": 2}.items())
    }
    return folder, found


def write_model(folder, tokenizer, seed, layers, better=1.0):
    """Exports a model that is `better` than a guess at the ten letters."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "num_kv_heads": 2}
    decoder = Decoder(ModelConfig(num_layers=layers, tie_embeddings=False, **shape), 257)
    params = jax.tree.map(np.array, decoder.init(jax.random.key(seed)))
    params["embedding"] *= 30
    params["embedding"][:, 0] = 2
    ids = Tokenizer.from_file(str(tokenizer))
    params["output"][[ids.token_to_id(letter) for letter in LETTERS], 0] += better
    export_checkpoint(
        *(folder, decoder, params),
        tokenizer=tokenizer,
        special_tokens=SpecialTokens(0, 0, 0),
        context=CONTEXT,
        shard_bytes=20_000,
    )
    return decoder, params


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


@pytest.mark.slow
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


def padded_tokenizer(folder, special=True):
    """The tokenizer with a token for padding beyond the models' last row, as people add one."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    token = AddedToken("<pad>", special=special, normalized=False)
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
    assert tokenizer.token_to_id("<pad>") == 257
    return tokenizer.to_str()


@pytest.mark.slow
def test_checkpoints_and_tokenizer_may_lie_in_a_bucket(checkpoints, tmp_path, monkeypatch, capsys):
    """And a `<pad>` that no text contains needs no row. What is said: the start, an adapter."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, bucket = checkpoints[0], fsspec.filesystem("memory")
    for name in ("weak", "strong"):
        for path in (folder / name).iterdir():
            bucket.pipe(f"/bucket/{name}/{path.name}", path.read_bytes())
        bucket.pipe(f"/bucket/{name}/original/consolidated.00.pth", b"not fetched")
    bucket.pipe("/bucket/weak/tokenizer.json", padded_tokenizer(folder).encode())
    bucket.pipe("/bucket/weak/adapter_model.safetensors", b"not read")
    config = json.loads((folder / "strong/config.json").read_text())
    bucket.pipe("/bucket/strong/config.json", json.dumps(config | {"bos_token_id": 65}).encode())
    try:
        remote = {
            "tokenizer.path": "memory://bucket/weak/tokenizer.json",
            "reference.weak.checkpoint": "memory://bucket/weak",
            "reference.strong.checkpoint": "memory://bucket/strong/",
        }
        assert main(arguments(folder, tmp_path, **remote)) == 0
        assert main(arguments(folder, tmp_path, **remote)) == 0  # nothing has changed
    finally:
        bucket.rm("/bucket", recursive=True)
    table = pq.read_table(tmp_path / "run/quadrants/assignment.parquet")
    assert set(table["doc_id"].to_pylist()) == DOCUMENTS.keys()
    assert not list(tmp_path.rglob("*.pth"))
    said = capsys.readouterr().err
    assert "tokenizer: documents start with '<s>' (id 0), found by its usual name" in said
    assert "config.json names another start of text" in said and "(id 65)" in said
    assert "reference.weak.checkpoint" in said and "adapter_model.safetensors is not app" in said
    summary = json.loads((tmp_path / "run/tokenize.json").read_text())["summary"]
    assert len(summary["tokenizer"]) == 2 and "another start" in summary["tokenizer"][1]
    assert "nothing to do" in said


def test_the_same_model_twice_is_refused_before_the_corpus_is_read(checkpoints, tmp_path, capsys):
    folder = checkpoints[0]
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in (folder / "weak").iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    for strong in (folder / "weak", copied):
        assert main(arguments(folder, tmp_path, **{"reference.strong.checkpoint": strong})) == 2
        assert "hold one and the same model" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_reference_models_trained_alike_are_refused_before_the_corpus_is_read(tmp_path, capsys):
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_heads": 2, "num_kv_heads": 2}
    changed = [
        f"--reference.{name}.model={json.dumps(shape | {'num_layers': 1})}"
        for name in ("weak", "strong")
    ]
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n')
    source = json.dumps([{"kind": "jsonl", "path": str(tmp_path / "c.jsonl")}])
    run = [f"--corpus.sources={source}", f"--run_directory={tmp_path / 'run'}"]
    assert main([*run, *changed]) == 2
    assert "reference.weak and reference.strong have the same settings" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


REFUSED = {
    "no folder": ({"reference.weak.checkpoint": "/nowhere"}, "there is no folder /nowhere"),
    "too few positions": ({"scoring.context": CONTEXT + 1}, f"at most {CONTEXT} tokens"),
    "no tokenizer named": ({"tokenizer.path": "null"}, "set tokenizer.path to"),
    "no tokenizer there": ({"tokenizer.path": "/no.json"}, "there is no file '/no.json'"),
    "a token of text without a row": ({"tokenizer.path": "padded.json"}, "('<pad>' is 257)"),
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
    padded = padded_tokenizer(folder, special=False)
    (tmp_path / "padded.json").write_text(padded)
    for name in ("weak", "strong"):
        copied = tmp_path / name
        copied.mkdir()
        for path in (folder / name).iterdir():
            (copied / path.name).write_bytes(path.read_bytes())
        if case == "a token of text without a row":
            (copied / "tokenizer.json").write_text(padded)
    places = {f"reference.{name}.checkpoint": tmp_path / name for name in ("weak", "strong")}
    ours = ("other.json", "padded.json")
    changed = places | {k: tmp_path / v if v in ours else v for k, v in changed.items()}
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


@pytest.fixture
def third(checkpoints, tmp_path):
    """The folder of a third model, and the model."""
    tokenizer = checkpoints[0] / "tokenizer.json"
    return tmp_path / "third", write_model(tmp_path / "third", tokenizer, seed=7, layers=2)


def rows_of(folder):
    parts = [pq.read_table(part) for part in list_parts(folder, ".parquet")]
    return {row["doc_id"]: row for row in pa.concat_tables(parts).to_pylist()}


@pytest.mark.slow
@pytest.mark.parametrize("ppl_model", ["strong", "weak"])
def test_a_third_model_is_compared_in_the_strong_ones_place(
    checkpoints, third, tmp_path, capsys, ppl_model
):
    folder, references = checkpoints
    given = {"partition.group_by": "[]", "scoring.ppl_model": ppl_model}
    run = arguments(folder, tmp_path, **given, **{"reference.third": third[0]})
    assert main([*run, "--plan"]) == 0
    planned = capsys.readouterr().out
    assert "sample, weak of the third pair" in planned and "score-third" in planned
    assert "sample, third of the third pair" in planned and "sample, strong" not in planned
    assert f"reference.third is imported; its shape is from {third[0]}" in planned
    assert main(run) == 0
    said = capsys.readouterr().err
    assert "third (at most)" in said and "compares nothing" not in said
    directory = RunDirectory(tmp_path / "run")
    scores, others = rows_of(directory.scores), rows_of(directory.reliability / "third")
    assert set(others) <= set(scores) and len(others) > 60
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for key in list(others)[::7]:
        ids = tokenizer.encode(DOCUMENTS[key]).ids
        for name, (decoder, params) in {"weak": references["weak"], "strong": third[1]}.items():
            nll = document_nll(decoder.config, params, ids, 0, CONTEXT, OVERLAP)
            np.testing.assert_allclose(others[key][f"nll_{name}"], nll, rtol=1e-4)
    line, _ = read_json(directory.partition)["reliability"]  # all, and the only domain
    assert (line["compared_with"], line["domain"]) == ("third", None)
    assert 20 < line["documents"] <= len(others) and -1 < line["pd"]["value"] < 0.999
    assert (line["ppl"]["value"] > 0.999) == (ppl_model == "weak")  # which is in both pairs


@pytest.mark.slow
def test_a_third_model_may_come_later_and_is_compared_with_new_quadrants(
    checkpoints, third, tmp_path, capsys
):
    folder, directory = checkpoints[0], RunDirectory(tmp_path / "run")
    weak = shutil.copytree(folder / "weak", tmp_path / "weak")
    given = {"partition.group_by": "[]", "reference.weak.checkpoint": weak}
    alone = arguments(folder, tmp_path, **given)
    run = [*alone, f"--reference.third={third[0]}"]
    assert main(alone) == 0
    said = capsys.readouterr().err
    assert said.count("compares nothing") == 1 and "reference.third takes one" in said
    scored = [path.stat().st_mtime_ns for path in list_parts(directory.scores, ".parquet")]
    before = directory.partition.read_bytes()
    write_model(weak, folder / "tokenizer.json", seed=11, layers=1)  # another under its path
    assert main(run) == 2
    assert "reference.weak: its weights or its tokenizer are not those" in capsys.readouterr().err
    shutil.copytree(folder / "weak", weak, dirs_exist_ok=True)
    assert main(run) == 0 and directory.partition.read_bytes() == before
    assert "--redo partition" in capsys.readouterr().err
    assert main([*run, "--redo=partition"]) == 0
    found = read_json(directory.partition)["reliability"]
    assert {line["compared_with"] for line in found} == {"third"}
    # Another one is no reason to score the corpus again.
    other = shutil.copytree(third[0], tmp_path / "other")
    changed = [*alone, f"--reference.third={other}"]
    capsys.readouterr()
    assert main(changed) == 2
    assert "(--redo score-third)" in capsys.readouterr().err
    assert main([*changed, "--redo=score-third"]) == 0
    assert [path.stat().st_mtime_ns for path in list_parts(directory.scores, ".parquet")] == scored
    shutil.copy(directory.assignment, tmp_path / "table.parquet")
    table = json.dumps({"path": str(tmp_path / "table.parquet"), "ppl": "ppl", "pd": "pd"})
    for scores in ([], [f"--scoring.table={table}"]):  # no sample outlives the scores
        assert main([*changed, "--redo=score"]) == 0 and directory.reliability.is_dir()
        assert main([*alone, *scores, "--redo=score"]) == 0
        assert not directory.reliability.exists()


def other_family(third):
    (third / "config.json").write_text(json.dumps({"model_type": "bloom"}))


def fewer_positions(third):
    config = json.loads((third / "config.json").read_text())
    few = config | {"max_position_embeddings": CONTEXT - 1}
    (third / "config.json").write_text(json.dumps(few))


def other_tokenizer(third):
    tokenizer = json.loads((third / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["ab"] = 257
    tokenizer["model"]["merges"].append(["a", "b"])
    (third / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (shutil.rmtree, "reference.third: there is no folder"),
        (other_family, "model_type"),
        (fewer_positions, f"at most {CONTEXT - 1} tokens"),
        (other_tokenizer, "reference.third: the tokenizer of"),
        ("weak", "reference.third and reference.weak.checkpoint hold one and the same model"),
        ("strong", "reference.third and reference.strong.checkpoint hold one and the same model"),
    ],
)
def test_an_unfit_third_model_is_refused_before_the_corpus_is_read(
    checkpoints, third, tmp_path, capsys, change, expected
):
    if isinstance(change, str):
        shutil.copytree(checkpoints[0] / change, tmp_path / "same")
        given = {"reference.third": tmp_path / "same"}
    else:
        change(third[0])
        given = {"reference.third": third[0]}
    assert main(arguments(checkpoints[0], tmp_path, **given)) == 2
    message = capsys.readouterr().err
    assert expected in message and message.startswith("error: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_third_model_worse_than_chance_is_refused(checkpoints, tmp_path, capsys):
    folder, directory = checkpoints[0], RunDirectory(tmp_path / "run")
    write_model(tmp_path / "worse", folder / "tokenizer.json", seed=7, layers=2, better=-1.0)
    given = {"partition.group_by": "[]", "reference.third": tmp_path / "worse"}
    assert main(arguments(folder, tmp_path, **given)) == 2
    assert "the third reference model predicts worse than chance" in capsys.readouterr().err
    assert not list_parts(directory.reliability / "third", ".parquet")
