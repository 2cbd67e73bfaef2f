"""Records that cannot be used are counted and named; strange ones that can be used come through."""

import json
from pathlib import Path

import pytest

from frame_jax.corpus.tokenizer import load_tokenizer
from frame_jax.main import main
from frame_jax.records import TokenReader
from frame_jax.run_directory import RunDirectory, list_parts
from tests.integration.small_run import DOCUMENTS, write_config, write_corpus

REFUSED = {
    "broken JSON": b'{"id": "x", "text": \n',
    "not an object": b'["text"]\n',
    "no text": b'{"id": "x"}\n',
    "null text": b'{"id": "x", "text": null}\n',
    "number as text": b'{"id": "x", "text": 3}\n',
    "list as domain": b'{"id": "x", "text": "a", "domain": ["b"]}\n',
    "object as id": b'{"id": {"a": 1}, "text": "a"}\n',
    "empty": b'{"id": "x", "text": ""}\n',
    "blank": b'{"id": "x", "text": " \\n\\t "}\n',
    "lone surrogate": b'{"id": "x", "text": "\\ud800"}\n',
    "lone surrogate in the id": b'{"id": "\\udfff", "text": "a"}\n',
    "not UTF-8": b'{"id": "x", "text": "\xff\xfe"}\n',
    "NUL bytes": b"\x00\x00\x00\x00\n",
    "duplicate id": b'{"id": "prose-1", "text": "again"}\n',
    "escape in the id": b'{"id": "prose-1\\u001b[2J", "text": ""}\n',
}

STRANGE = {
    "nul": "a\x00b",
    "escape": "\x1b[2J\x1b]0;title\x07",
    "right to left": "\u202eabc\u202c \u05d0\u05d1",
    "script": "<script>alert(1)</script>&amp;",
    "separators": "a\u2028b\u2029c\x85d\r\ne",
    "../../etc/passwd": "path as an id",
    "<|endoftext|><s></s>": "<|endoftext|><s></s><|begin_of_text|>",
    "unassigned": "\U000e0fff\ufffe\ufdd0",
    "large": "long words " * 100_000,
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus.jsonl")
    return write_config(tmp_path)


def test_records_that_cannot_be_used_stop_the_run_and_are_listed(config: Path, capsys) -> None:
    with (config.parent / "corpus.jsonl").open("ab") as file:
        file.writelines(REFUSED.values())
    assert main(["--config", str(config), "--until", "tokenize"]) == 2
    shown = capsys.readouterr().err
    error = shown[shown.index("error: ") :]
    first = 2 * DOCUMENTS + 1
    assert f"{len(REFUSED)} of {first - 1 + len(REFUSED)} records" in error
    assert "rejected.jsonl" in error and "corpus.jsonl line " in error
    assert "Traceback" not in shown and "\x1b[2J" not in shown
    listed = [json.loads(line) for line in RunDirectory(config.parent / "run").rejected.open()]
    assert sorted(one["line"] for one in listed) == list(range(first, first + len(REFUSED)))


def test_strange_text_is_data(config: Path) -> None:
    with (config.parent / "corpus.jsonl").open("a", encoding="utf-8") as file:
        for name, text in STRANGE.items():
            file.write(json.dumps({"id": name, "text": text}) + "\n")
    assert main(["--config", str(config), "--until", "tokenize"]) == 0
    directory = RunDirectory(config.parent / "run")
    tokenizer = load_tokenizer(directory)
    texts = set()
    for part in list_parts(directory.tokens, ".arrayrecord"):
        reader = TokenReader(part)
        texts |= {tokenizer.decode(ids.tolist()) for ids in reader.read(range(len(reader)))}
    assert texts >= set(STRANGE.values())
    assert not list(config.parent.parent.rglob("passwd"))
