"""Records that cannot be used are counted and named; strange ones that can be used come through."""

import json
import resource
from pathlib import Path

import pyarrow.dataset
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.documents import Document, Rejection
from frame_jax.corpus.sources import SOURCES
from frame_jax.corpus.sources.inputs import RecordSlice
from frame_jax.corpus.tokenizer import load_tokenizer
from frame_jax.main import main
from frame_jax.records import TokenReader
from frame_jax.run.directory import RunDirectory, list_parts
from tests.integration.small_run import DOCUMENTS, write_config, write_corpus

REFUSED = {
    "broken JSON": b'{"id": "x", "text": \n',
    "not an object": b'["text"]\n',
    "no text": b'{"id": "x"}\n',
    "null text": b'{"id": "x", "text": null}\n',
    "number as text": b'{"id": "x", "text": 3}\n',
    "list as domain": b'{"id": "x", "text": "a", "domain": ["b"]}\n',
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


@pytest.mark.slow
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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("text", "id", "source", "domain", "language"), JSON)
)
RECORDS = st.one_of(
    st.binary(max_size=60),
    JSON.map(lambda value: json.dumps(value).encode()),
    FIELDS.map(lambda value: json.dumps(value).encode()),
    st.tuples(FIELDS, st.integers(0, 40), st.binary(min_size=1, max_size=2)).map(
        lambda t: json.dumps(t[0]).encode()[: t[1]] + t[2] + json.dumps(t[0]).encode()[t[1] :]
    ),
).map(lambda line: line.replace(b"\n", b" "))


@pytest.mark.slow
@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(records=st.lists(RECORDS, min_size=1, max_size=8))
def test_any_line_is_a_document_or_a_rejection_with_its_place(
    records: list[bytes], tmp_path: Path
) -> None:
    path = tmp_path / "any.jsonl"
    path.write_bytes(b"\n".join(records) + b"\n")
    config = SourceConfig(kind="jsonl", path=str(path))
    source = SOURCES["jsonl"]
    (item,) = source.list_inputs(config)
    found = list(source.read_records(config, item, RecordSlice()))
    blank = {n for n, record in enumerate(records, 1) if not record or record.isspace()}
    assert [one.line for one in found] == [n for n in range(1, len(records) + 1) if n not in blank]
    for one in found:
        assert one.file == str(path)
        if isinstance(one, Rejection):
            assert one.reason
        else:
            assert isinstance(one, Document) and one.text.strip() and one.id
            for text in (one.id, one.text, one.source, one.domain, one.language):
                text.encode("utf-8")


@pytest.mark.slow
def test_a_document_of_20_megabytes_goes_through_whole(config: Path) -> None:
    line = "".join(f"line {number} of a very long document\n" for number in range(1000))
    text = line * (20_000_000 // len(line) + 1)
    with (config.parent / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": "large", "text": text}) + "\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    arguments = ["--config", str(config), "--until", "tokenize"]
    assert main([*arguments, "--tokenizer.sample_bytes", "200000"]) == 0
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 20 * len(text)
    directory = RunDirectory(config.parent / "run")
    readers = [TokenReader(part) for part in list_parts(directory.tokens, ".arrayrecord")]
    largest = max((ids for r in readers for ids in r.read(range(len(r)))), key=len)
    tokenizer, middle = load_tokenizer(directory), len(largest) // 2
    assert text.startswith(tokenizer.decode(largest[:9000]))
    assert text.endswith(tokenizer.decode(largest[-9000:]))
    assert tokenizer.decode(largest[middle : middle + 9000]) in text
    table = (
        pyarrow.dataset.dataset([str(part) for part in list_parts(directory.tokens, ".parquet")])
        .to_table(["doc_id", "bytes", "tokens"])
        .to_pylist()
    )
    (row,) = [row for row in table if row["doc_id"] == "large"]
    assert row["bytes"] == len(text) and row["tokens"] == len(largest)
