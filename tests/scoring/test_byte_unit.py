"""Two models with different tokenizers are compared by the byte, as a float64 decoder says."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from frame_jax.config.file import parse
from frame_jax.config.models import ModelConfig
from frame_jax.export_scores import main as export_scores
from frame_jax.main import main
from frame_jax.models.hugging_face.export import export_checkpoint
from frame_jax.models.transformer import Decoder
from frame_jax.run.directory import RunDirectory, list_parts, read_json
from frame_jax.run.special_tokens import SpecialTokens
from frame_jax.scoring import model_tokenizers, score
from tests.scoring.numpy_decoder import document_nll

CONTEXT, OVERLAP = 16, 4
WORDS = ["quad", "rant", "order", "école", "四", " ", "e\u0301t\u00e9", "<s>", "\n"]
DOCUMENTS = {
    f"d{n}": "".join(np.random.default_rng(n).choice(WORDS, n)) + "." for n in range(1, 70)
}


def tokenizer_of(path: Path, vocab_size: int, bos: str, nfc: bool = False) -> Tokenizer:
    """A byte-level BPE trained on the words, which may compose characters as Qwen's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC() if nfc else None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[bos], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(DOCUMENTS.values(), trainer)
    tokenizer.save(str(path))
    return tokenizer


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folder; by name the tokenizer, the decoder and its parameters: weak, strong and composing."""
    folder = tmp_path_factory.mktemp("checkpoints")
    found = {}
    kinds = {"weak": (1, 257, "<s>"), "strong": (2, 290, "<bos>"), "composing": (2, 280, "<s>")}
    for seed, (name, (layers, vocab_size, bos)) in enumerate(kinds.items()):
        path = folder / f"{name}.json"
        tokenizer = tokenizer_of(path, vocab_size, bos, nfc=name == "composing")
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "num_kv_heads": 2}
        size = tokenizer.get_vocab_size()
        decoder = Decoder(ModelConfig(num_layers=layers, tie_embeddings=False, **shape), size)
        params = jax.tree.map(np.array, decoder.init(jax.random.key(seed)))
        used = {i for text in DOCUMENTS.values() for i in tokenizer.encode(text).ids}
        params["embedding"] *= 30
        params["embedding"][:, 0] = 2
        params["output"][sorted(used), 0] += 1  # better than a guess
        export_checkpoint(
            *(folder / name, decoder, params),
            tokenizer=path,
            special_tokens=SpecialTokens(tokenizer.token_to_id(bos), tokenizer.token_to_id(bos), 0),
            context=CONTEXT,
            shard_bytes=20_000,
        )
        found[name] = tokenizer, tokenizer.token_to_id(bos), decoder, params
    return folder, found


def arguments(folder: Path, tmp_path: Path, **changed) -> list[str]:
    rows = [{"id": name, "text": text} for name, text in DOCUMENTS.items()]
    lines = [json.dumps(row) for row in rows] + ["{broken", json.dumps(rows[0])]  # rejected
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    settings = {
        "config": "configs/score_only.yaml",
        "until": "partition",
        "run_directory": tmp_path / "run",
        "corpus.sources": json.dumps([{"kind": "jsonl", "path": str(tmp_path / "c.jsonl")}]),
        "corpus.parts": 3,
        "corpus.max_rejected_fraction": 0.5,
        "tokenizer.path": "null",
        "tokenizer.vocab_size": 300,
        "reference.weak.checkpoint": folder / "weak",
        "reference.strong.checkpoint": folder / "strong",
        "scoring.unit": "byte",
        "scoring.context": CONTEXT,
        "scoring.overlap": OVERLAP,
        "scoring.compute_dtype": "float32",
        "partition.group_by": "[]",
    } | changed
    return [f"--{key}={value}" for key, value in settings.items()]


def by_hand(model, text: str, size: int) -> tuple[int, float, float]:
    """Tokens, NLL sum in nats, and nats a byte of the text as it was read, of this size."""
    tokenizer, bos_id, decoder, params = model
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(text).ids
    nll = document_nll(decoder.config, params, ids, bos_id, CONTEXT, OVERLAP)
    return len(ids), nll, nll / size


@pytest.mark.slow
@pytest.mark.parametrize("composes", [False, True])
def test_documents_rank_by_losses_a_byte(checkpoints, tmp_path, monkeypatch, composes) -> None:
    """With the run's own tokenizer, and with one whose tokens spell composed characters; the corpus
    is gone by then, and workers encode the texts."""
    folder, found = checkpoints
    path = folder / "composing/tokenizer.json" if composes else "null"
    monkeypatch.setattr(model_tokenizers, "TEXTS_CHARACTERS", 300)
    run = arguments(folder, tmp_path, **{"tokenizer.path": path, "workers.count": 1 + composes})
    assert main([*run, "--until=tokenize"]) == 0
    (tmp_path / "c.jsonl").unlink()
    assert main(run) == 0
    assert not list((tmp_path / "run/scores").glob(".tmp*"))
    table = tmp_path / "scores.parquet"
    assert export_scores([str(tmp_path / "run"), "--out", str(table)]) == 0
    rows = pq.read_table(table).to_pylist()
    assert {row["doc_id"] for row in rows} == DOCUMENTS.keys()
    for row in rows[::5]:
        text, size = DOCUMENTS[row["doc_id"]], len(DOCUMENTS[row["doc_id"]].encode())
        text = unicodedata.normalize("NFC", text) if composes else text
        hand = {name: by_hand(found[name], text, size) for name in ("weak", "strong")}
        for name, (tokens, nll, loss) in hand.items():
            assert row[f"predicted_tokens_{name}"] == tokens
            np.testing.assert_allclose(row[f"nll_{name}"], nll, rtol=1e-4)
            np.testing.assert_allclose(row[f"loss_{name}"], nll / tokens, rtol=1e-4)
            np.testing.assert_allclose(row[f"bits_per_byte_{name}"], loss / np.log(2), rtol=1e-4)
        assert row["bytes"] == size
        weak, strong = (np.exp(hand[name][2]) for name in ("weak", "strong"))
        np.testing.assert_allclose(row["ppl"], strong, rtol=1e-4)
        np.testing.assert_allclose(row["pd"], (weak - strong) / weak, rtol=1e-3, atol=1e-4)
    assert {row["quadrant"] for row in rows} == {"Q1", "Q2", "Q3", "Q4"}
    assert read_json(tmp_path / "run/quadrants/partition.json")["names"][0] == "PPL a byte"
    summary = read_json(tmp_path / "run/score.json")["summary"]
    nll = sum(row["nll_strong"] for row in rows)
    assert summary["bytes"] == sum(len(text.encode()) for text in DOCUMENTS.values())
    assert summary["mean_nll_strong"] == pytest.approx(nll / summary["bytes"])


@pytest.mark.slow
def test_a_sample_has_the_scores_of_its_documents(checkpoints, tmp_path, monkeypatch) -> None:
    folder, _ = checkpoints
    given = arguments(folder, tmp_path, **{"tokenizer.path": folder / "composing/tokenizer.json"})
    assert main(given) == 0
    monkeypatch.setattr(score, "other_references", lambda *_: {"strong": ("strong", None)})
    sampled = [*given[:1], *given[2:], "--scoring.reliability=12"]
    (tmp_path / "c.jsonl").unlink()
    directory = RunDirectory(tmp_path / "run")
    assert score.score_under_others(parse(sampled)[0], directory, "half") == {"models": 1}
    scores, others = (
        {row["doc_id"]: row for part in list_parts(place, ".parquet") for row in rows_of(part)}
        for place in (directory.scores, directory.reliability / "half")
    )
    assert 6 <= len(others) <= 12
    for key in others:
        assert others[key]["nll_strong"] == pytest.approx(scores[key]["nll_strong"], rel=1e-4)


@pytest.mark.slow
def test_a_third_model_reads_by_its_own_tokenizer(checkpoints, tmp_path, capsys) -> None:
    folder, found = checkpoints
    run = arguments(folder, tmp_path, **{"reference.third": folder / "composing"})
    assert main(run) == 0
    assert "reference.third: the third model starts documents with '<s>'" in capsys.readouterr().err
    others = list_parts(RunDirectory(tmp_path / "run").reliability / "third", ".parquet")
    rows = [row for part in others for row in rows_of(part)]
    assert len(rows) > 60
    for row in rows[::9]:
        for role, name in {"weak": "weak", "strong": "composing"}.items():
            tokens, nll, _ = by_hand(found[name], DOCUMENTS[row["doc_id"]], 1)
            assert row[f"predicted_tokens_{role}"] == tokens
            np.testing.assert_allclose(row[f"nll_{role}"], nll, rtol=1e-4)


def rows_of(part: Path) -> list[dict]:
    return pq.read_table(part).to_pylist()


@pytest.mark.slow
def test_one_tokenizer_for_both_gives_the_same_sums_over_bytes(checkpoints, tmp_path) -> None:
    """PPL then ranks by bits a byte, and not as losses a token do."""
    folder, found = checkpoints
    _, bos_id, decoder, params = found["strong"]
    export_checkpoint(
        *(tmp_path / "other", decoder),
        params | {"final_norm": params["final_norm"] * np.float32(0.8)},
        tokenizer=folder / "strong.json",
        special_tokens=SpecialTokens(bos_id, bos_id, 0),
        context=CONTEXT,
        shard_bytes=1 << 20,
    )
    settings = {
        "tokenizer.path": folder / "strong.json",
        "reference.weak.checkpoint": tmp_path / "other",
    }
    tables = {}
    for unit in ("token", "byte"):
        run = tmp_path / unit
        given = settings | {"scoring.unit": unit, "run_directory": run}
        assert main(arguments(folder, tmp_path, **given)) == 0
        assert export_scores([str(run), "--out", str(tmp_path / f"{unit}.parquet")]) == 0
        table = pq.read_table(tmp_path / f"{unit}.parquet").to_pylist()
        tables[unit] = {row["doc_id"]: row for row in table}
    for doc_id, row in tables["byte"].items():
        other = tables["token"][doc_id]
        np.testing.assert_allclose(row["nll_weak"], other["nll_weak"], rtol=2e-6)
        np.testing.assert_allclose(np.log(row["ppl"]) * row["bytes"], row["nll_strong"], rtol=1e-9)
        gap = (row["nll_weak"] - row["nll_strong"]) / row["bytes"]
        np.testing.assert_allclose(row["pd"], 1 - np.exp(-gap), rtol=1e-9, atol=1e-12)
    by_byte, by_token = (
        sorted(tables[unit], key=lambda doc_id, unit=unit: tables[unit][doc_id]["ppl"])
        for unit in ("byte", "token")
    )
    bits = {doc_id: row["nll_strong"] / row["bytes"] for doc_id, row in tables["token"].items()}
    assert by_byte == sorted(bits, key=bits.__getitem__) and by_byte != by_token


@pytest.mark.slow
def test_a_lost_part_comes_back_unless_a_tokenizer_has_changed(
    checkpoints, tmp_path, capsys
) -> None:
    folder, _ = checkpoints
    run = arguments(folder, tmp_path, until="score")
    for name in ("weak", "strong"):
        (tmp_path / name).mkdir()
        for path in (folder / name).iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    run += [f"--reference.{name}.checkpoint={tmp_path / name}" for name in ("weak", "strong")]
    assert main(run) == 0
    parts = list_parts(tmp_path / "run/scores", ".parquet")
    before = [part.read_bytes() for part in parts]
    for changed in (False, True):
        parts[1].unlink()
        (tmp_path / "run/score.json").unlink()
        if changed:
            path = tmp_path / "strong/tokenizer.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"padding": None}, indent=3))
        assert main(run) == (2 if changed else 0)
        assert [part.read_bytes() for part in parts if part.exists()] == (
            [before[0], before[2]] if changed else before
        )
    assert "reference.strong: its weights or its tokenizer are not those" in capsys.readouterr().err


def test_different_tokenizers_are_refused_by_default_with_the_way_out(
    checkpoints, tmp_path, capsys
) -> None:
    folder, _ = checkpoints
    given = {"scoring.unit": "token", "tokenizer.path": folder / "weak.json"}
    assert main(arguments(folder, tmp_path, **given)) == 2
    message = capsys.readouterr().err
    assert "reference.strong.checkpoint: the tokenizer of" in message
    assert "compared by the byte (scoring.unit: byte)" in message
    assert not (tmp_path / "run").exists()


def without_bos(value: dict) -> None:
    value["added_tokens"] = []
    value["model"]["vocab"]["<x>"] = value["model"]["vocab"].pop("<bos>")


def with_a_word_too_many(value: dict) -> None:
    value["added_tokens"].append(
        value["added_tokens"][0] | {"id": 290, "content": "quadrant", "special": False}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "has no tokenizer.json"),
        (without_bos, "has none of the usual tokens that start or end a text"),
        (with_a_word_too_many, "the model knows 290 tokens, but"),
    ],
)
def test_a_tokenizer_that_its_model_cannot_read_is_refused_before_the_corpus_is_read(
    checkpoints, tmp_path, capsys, change, message
) -> None:
    folder, _ = checkpoints
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in (folder / "strong").iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    tokenizer = copied / "tokenizer.json"
    if change is None:
        tokenizer.unlink()
    else:
        value = json.loads(tokenizer.read_text())
        change(value)
        tokenizer.write_text(json.dumps(value))
    given = {"reference.strong.checkpoint": copied}
    assert main(arguments(folder, tmp_path, **given)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: reference.strong.checkpoint: ") and message in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_what_each_model_starts_documents_with_is_said(checkpoints, tmp_path, capsys) -> None:
    """On the terminal before the corpus is read, and in the marker that the report reads."""
    folder, found = checkpoints
    strong = shutil.copytree(folder / "strong", tmp_path / "strong")
    described = json.loads((strong / "config.json").read_text())
    bos_id = found["strong"][1]
    (strong / "config.json").write_text(json.dumps(described | {"bos_token_id": bos_id + 1}))
    other = found["strong"][0].id_to_token(bos_id + 1)
    run = arguments(folder, tmp_path, **{"reference.strong.checkpoint": strong, "until": "score"})
    assert main(run) == 0
    said = capsys.readouterr().err
    weak = f"reference.weak.checkpoint: the weak model starts documents with '<s>' (id {bos_id}), "
    lines = [
        f"{weak}found by its usual name",
        f"reference.strong.checkpoint: the strong model starts documents with '<bos>' (id "
        f"{bos_id}), found by its usual name; but {strong / 'config.json'} names another start of "
        f"text, {other!r} (id {bos_id + 1}): a model is best scored with what it was trained on; "
        f"tokenizer.bos_token: {other!r} takes it",
    ]
    for line in lines:
        assert f"{line}\n" in said and said.index(line) < said.index("tokenize begins")
    assert read_json(tmp_path / "run/score.json")["summary"]["warnings"][:2] == lines
    for source in (strong / "config.json", folder / "strong" / "config.json"):
        assert f"{source} names a start of text that the tokenizer does not have" not in said
