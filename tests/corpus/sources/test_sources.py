"""Every kind of source: the documents it gives, what it rejects, and what it refuses."""

import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.documents import Document, Rejection
from frame_jax.corpus.sources import SOURCES
from frame_jax.errors import UserError
from tests.corpus.reading import read, stripes


def by_place(found):
    return sorted(found, key=lambda record: (record.file, record.line))


def test_jsonl_reads_fields_by_name_and_fills_in_what_is_absent(write_jsonl):
    path = write_jsonl(
        "a.jsonl",
        [
            {"key": 7, "body": "one", "from": "web", "topic": "law", "lang": "zh"},
            {"key": None, "body": "二"},
        ],
    )
    config = SourceConfig(
        kind="jsonl",
        path=str(path),
        text_field="body",
        id_field="key",
        source_field="from",
        domain_field="topic",
        language_field="lang",
        domain="other",
        language="xx",
    )
    assert read(config) == [
        Document("7", "one", "web", "law", "zh", str(path), 1),
        Document("a.jsonl:2", "二", "a", "other", "xx", str(path), 2),
    ]
    named = dataclasses.replace(config, name="pile")
    assert [(d.id, d.source) for d in read(named)] == [("7", "web"), ("pile/a.jsonl:2", "pile")]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_jsonl_holds_the_same_documents(write_jsonl, records, suffix):
    plain = write_jsonl("plain.jsonl", records)
    data = plain.read_bytes()
    packed = plain.with_name("plain.jsonl" + suffix)
    if suffix == ".gz":
        half = len(data) // 2  # two members: what appending to a .gz makes
        packed.write_bytes(gzip.compress(data[:half]) + gzip.compress(data[half:]))
    else:
        packed.write_bytes(pa.compress(data, codec="zstd", asbytes=True))
    wanted = [(d.id, d.text) for d in read(SourceConfig(kind="jsonl", path=str(plain)))]
    assert [(d.id, d.text) for d in read(SourceConfig(kind="jsonl", path=str(packed)))] == wanted
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"plain.jsonl{suffix}"):
        read(SourceConfig(kind="jsonl", path=str(packed)))


def test_jsonl_says_why_each_bad_record_is_unusable(write_jsonl):
    good = {"id": "a", "text": "fine"}
    path = write_jsonl(
        "bad.jsonl",
        [
            b"\xef\xbb\xbf" + json.dumps(good).encode(),
            b'{"text": "cut of',
            b'{"text": "caf\xe9"}',
            b'["text"]',
            {"id": "b"},
            b"   ",
            {"text": ["list"]},
            {"text": " \n\t"},
            b'{"text": "x \\ud800 y"}',
            {"text": None},
            b"[" * 100_000,
            {"text": "x", "domain": 3},
            b'{"text": ' + b"9" * 5000 + b"}",
            {"id": "c", "text": "fine too"},
        ],
    )
    found = read(SourceConfig(kind="jsonl", path=str(path)))
    assert [(d.id, d.line) for d in found if isinstance(d, Document)] == [("a", 1), ("c", 14)]
    reasons = {r.line: r.reason for r in found if isinstance(r, Rejection)}
    wanted = {
        2: "broken JSON",
        3: "not UTF-8: byte 0xe9",
        4: "not a JSON object but list",
        5: "no text: the field 'text'",
        7: "holds list, not text",
        8: "empty",
        9: "lone surrogate",
        10: "no text",
        11: "broken JSON",
        12: "'domain' holds int",
        13: "broken JSON",
    }
    assert reasons.keys() == wanted.keys()
    assert all(text in reasons[line] for line, text in wanted.items()), reasons


def test_paths_are_a_file_a_folder_or_a_pattern(write_jsonl, tmp_path, monkeypatch):
    for name in ("b.jsonl", "sub/a.jsonl", "sub/note.txt", ".hidden/c.jsonl"):
        write_jsonl(name, [{"text": name}])

    def texts(path):
        return [d.text for d in read(SourceConfig(kind="jsonl", path=str(path)))]

    data = tmp_path / "data"
    assert texts(data) == ["b.jsonl", "sub/a.jsonl"]
    assert texts(data / "**" / "*.jsonl") == ["b.jsonl", "sub/a.jsonl"]
    assert texts(data / "*" / "a.jsonl") == ["sub/a.jsonl"]
    assert texts(data / "sub" / "note.txt") == ["sub/note.txt"]
    monkeypatch.chdir(tmp_path)
    config = SourceConfig(kind="jsonl", path="data/*.jsonl")
    # Ids do not depend on where the corpus lies.
    assert [d.id for d in read(config)] == ["b.jsonl:1"]
    assert read(SourceConfig(kind="jsonl", path=str(data)))[0].id == "b.jsonl:1"


@pytest.mark.parametrize("path", ["nowhere.jsonl", "data/*.nothing", "empty"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "text"])
def test_nothing_to_read_is_an_error_that_names_the_path(tmp_path, monkeypatch, kind, path):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="path") as error:
        SOURCES[kind].list_inputs(SourceConfig(kind=kind, path=path))
    assert path in str(error.value)


@pytest.mark.parametrize("group_rows", [1, 7, 1000])
def test_parquet_holds_what_was_written_and_stripes_share_it_out(tmp_path, records, group_rows):
    table = pa.table(
        {
            "id": [r["id"] for r in records],
            "text": pa.array([r["text"] for r in records], pa.large_string()),
            "domain": pa.array([r["domain"] for r in records]).dictionary_encode(),
            "unread": list(range(len(records))),
        }
    )
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=group_rows)
    config = SourceConfig(kind="parquet", path=str(path), language="fr")
    found = read(config)
    assert [(d.id, d.text, d.domain) for d in found] == [
        (r["id"], r["text"], r["domain"]) for r in records
    ]
    assert {(d.source, d.language) for d in found} == {("a", "fr")}
    assert [d.line for d in found] == list(range(1, 121))
    assert by_place(stripes(config, 4)) == found


def test_parquet_rejects_rows_and_refuses_files(tmp_path):
    path = tmp_path / "a.parquet"
    raw = pa.array([b"good", b"caf\xe9", b"", None], pa.binary())
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 4, raw.buffers())}), path)
    found = read(SourceConfig(kind="parquet", path=str(path)))
    assert [r.line for r in found if isinstance(r, Rejection)] == [2, 3, 4]
    assert "not UTF-8" in found[1].reason
    with pytest.raises(UserError, match=r"no column 'body'.*its columns are text.*text_field"):
        read(SourceConfig(kind="parquet", path=str(path), text_field="body"))
    with pytest.raises(UserError, match=r"no column 'topic'.*domain_field"):
        read(SourceConfig(kind="parquet", path=str(path), domain_field="topic"))
    path.write_bytes(b"not parquet")
    with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file"):
        read(SourceConfig(kind="parquet", path=str(path)))


def test_text_folder_is_one_document_a_file(tmp_path):
    folder = tmp_path / "books"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.txt").write_bytes(b"\xef\xbb\xbfsecond\r\nline\n")
    (folder / "sub" / "a.md").write_text("中文", "utf-8")
    (folder / "bad.txt").write_bytes(b"one\ntwo\nbad \xff\n")
    (folder / ".DS_Store").write_bytes(b"\0")
    config = SourceConfig(kind="text", path=str(folder), domain="books", language="mul")
    b, bad, a = read(config)
    assert b == Document("b.txt", "second\r\nline\n", "text", "books", "mul", b.file, 1)
    assert (a.id, a.text) == ("sub/a.md", "中文")
    assert (bad.file, bad.line) == (str(folder / "bad.txt"), 3)
    assert by_place(stripes(config, 2)) == by_place([b, bad, a])


@pytest.fixture(scope="module")
def prepared_dataset(tmp_path_factory):
    """A TFDS data directory with `tiny_texts:1.0.0` in array_record format; no TensorFlow."""
    import tensorflow_datasets as tfds
    from etils import epath

    data_dir = tmp_path_factory.mktemp("tfds")

    # Not registered: it is read as any dataset whose code is elsewhere.
    class TinyTexts(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        # This class is not a file of a package, where these would be looked up.
        code_path = None
        url_infos: dict = {}  # noqa: RUF012
        pkg_dir_path = epath.Path(data_dir)

        def _info(self):
            features = {"text": tfds.features.Text(), "year": tfds.features.Scalar(np.int64)}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(30):
                yield i, {"text": f"text {i} 中文" if i else b"\xff", "year": 2000 + i}

    TinyTexts(data_dir=str(data_dir), file_format="array_record").download_and_prepare()
    return str(data_dir)


def test_tfds_reads_a_prepared_dataset_without_tensorflow(prepared_dataset):
    import sys

    config = SourceConfig(
        kind="tfds", path=prepared_dataset, name="tiny_texts:1.0.0", domain_field=None
    )
    found = read(config)
    assert {d.text for d in found if isinstance(d, Document)} == {
        f"text {i} 中文" for i in range(1, 30)
    }
    [rejection] = [r for r in found if isinstance(r, Rejection)]
    assert "not UTF-8" in rejection.reason
    assert len({d.id for d in found if isinstance(d, Document)}) == 29
    assert {d.source for d in found if isinstance(d, Document)} == {"tiny_texts"}
    assert by_place(stripes(config, 4)) == found
    assert len(read(dataclasses.replace(config, split="train[:10]"))) == 10
    ids = [d.id for d in read(dataclasses.replace(config, id_field="year")) if d != rejection]
    assert all(2000 < int(number) < 2030 for number in ids if number.isdigit())
    assert "tensorflow" not in sys.modules


def test_a_prepared_dataset_in_the_home_folder(prepared_dataset, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(Path(prepared_dataset).parent))
    path = f"~/{Path(prepared_dataset).name}"
    config = SourceConfig(kind="tfds", path=path, name="tiny_texts:1.0.0")
    assert len(read(config)) == 30
    with pytest.raises(UserError, match="no home folder is known for ~nobody-at-all"):
        read(dataclasses.replace(config, path="~nobody-at-all/x"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "absent_texts:1.0.0"}, r"no prepared TFDS dataset.*download_and_prepare"),
        ({"name": "tiny_texts:2.0.0"}, r"no prepared TFDS dataset.*tiny_texts:2\.0\.0"),
        ({"split": "test"}, r"no split 'test', only train"),
        ({"text_field": "body"}, r"no feature 'body'.*text, year"),
        ({"name": "mnist"}, r"not prepared"),  # one that TFDS could download
    ],
)
def test_tfds_names_what_is_missing(prepared_dataset, changed, message):
    values = {"kind": "tfds", "path": prepared_dataset, "name": "tiny_texts:1.0.0"} | changed
    with pytest.raises(UserError, match=message):
        read(SourceConfig(**values))


@pytest.mark.parametrize("count", [1, 2, 7, 200])
def test_stripes_of_a_jsonl_hold_each_record_once(write_jsonl, records, count):
    path = write_jsonl("a.jsonl", [*records[:40], b"broken", *records[40:]])
    config = SourceConfig(kind="jsonl", path=str(path))
    assert by_place(stripes(config, count)) == read(config)


def test_a_name_that_a_line_has_twice_is_no_field(write_jsonl):
    """Which of two values counts is for no reader to say, as of two columns of one name."""
    lines = [
        b'{"text": "one", "text": "two"}',
        b'{"text": "three", "other": 1, "other": 2}',
        b'{"text": "four", "meta": {"id": 1, "id": 2}}',
        b'{"text": "five", "meta": {"id": 1, "x": {"y": 1, "y": 2}}}',
    ]
    path = write_jsonl("a.jsonl", lines)
    found = read(SourceConfig(kind="jsonl", path=str(path), id_field="meta.id"))
    assert [getattr(record, "text", None) for record in found] == [None, "three", None, "five"]
    assert found[0].reason == "several values of one name: 'text'"
    assert found[2].reason == "several values of one name: 'id'"
