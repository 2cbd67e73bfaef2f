"""The benchmark of tokenizing gives every contender the same work, and finds what they write."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from frame_jax.corpus.tokenizer_training import train_tokenizer

REPOSITORY = Path(__file__).parents[2]
PEERS = REPOSITORY / ".venv/peers/bin/python"


@pytest.fixture
def options(tmp_path) -> list[str]:
    texts = [
        f"Document {number}: an even longer text of the corpus. 数据\n" for number in range(40)
    ]
    train_tokenizer(texts, 300).save(str(tmp_path / "tokenizer.json"))
    with (tmp_path / "texts.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": text, "text": text}) + "\n" for text in texts)
    return [
        *("--english", str(tmp_path / "texts.jsonl"), "--texts", "english", "--megabytes", "1"),
        *("--tokenizer", str(tmp_path / "tokenizer.json"), "--turns", "1"),
    ]


def lines_of(*options: str) -> list[dict]:
    tool = [sys.executable, REPOSITORY / "tools/benchmark_tokenize.py", *options]
    done = subprocess.run(tool, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.processes
def test_every_kind_of_file_gives_the_same_tokens_by_any_number_of_workers(options) -> None:
    lines = lines_of(*options, "--workers", "1", "2")
    assert [(line["kind"], line["workers"]) for line in lines] == [
        (kind, workers) for kind in ("jsonl", "parquet", "arrow") for workers in (1, 2)
    ]
    assert len({line["ours"]["tokens"] for line in lines}) == 1 and lines[0]["ours"]["tokens"] > 400
    for line in lines:
        assert line["processor"] and line["megabytes"] > 0 and line["vocabulary"] > 256
        assert 20 < line["ours"]["worker_megabytes"] < 400 and line["ours"]["files_open"] > 3
        assert line["ours"]["seconds"] > 0 < line["ours"]["start_cpu_seconds"]


@pytest.mark.slow
@pytest.mark.processes
def test_peers_write_the_same_tokens(options) -> None:
    if not PEERS.exists():
        pytest.skip("the peers are not in .venv/peers: see tools/benchmark_tokenize.py")
    for line in lines_of(*options, "--peers_python", str(PEERS)):
        assert line["datatrove"]["tokens"] == line["datasets"]["tokens"] == line["ours"]["tokens"]
        assert line["ratio"] > 0 and {"ratio_without_start", "megabytes"} <= line.keys()


def test_installed_texts_stand_in_for_a_corpus(monkeypatch) -> None:
    import benchmark_tokenize as tool

    options = tool.parser().parse_args(["--corpus", "nowhere", "--megabytes", "0.2"])
    for text, domain in (("english", "prose"), ("code", "code")):
        documents = list(tool.read_texts(text, options))
        assert {document.domain for document in documents} == {domain}
        assert 200_000 <= sum(len(d.text.encode()) for d in documents) < 400_000
    assert not list(tool.read_texts("chinese", options))


def test_files_of_a_case_hold_its_documents(tmp_path) -> None:
    import benchmark_tokenize as tool

    from frame_jax.config.corpus import CorpusConfig, SourceConfig
    from frame_jax.corpus.parts import sample_documents

    options = tool.parser().parse_args(["--corpus", "nowhere", "--megabytes", "0.05"])
    wanted = {(d.id, d.text) for d in tool.read_texts("english", options)}
    for kind in tool.KINDS:
        folder = tool.write_files(list(tool.read_texts("english", options)), kind, tmp_path / kind)
        assert len(list(Path(folder).iterdir())) == tool.FILES
        source = SourceConfig(kind, str(folder))
        assert {(d.id, d.text) for d in sample_documents(CorpusConfig([source]), 1 << 30)} == wanted
