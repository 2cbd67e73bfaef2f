"""Fields of Parquet, Arrow and JSON records: nested ones, ids of every type, damaged pages."""

import dataclasses
import datetime
import decimal
import json
import re
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.documents import Document, Rejection
from frame_jax.errors import UserError
from tests.corpus.reading import read, stripes

ROWS = 500
TEXTS = [f"document {k} with a few words and more of them {k * k}" for k in range(ROWS)]
ENCODINGS: dict[str, dict] = {
    "PLAIN": {"use_dictionary": False, "compression": "none"},
    "dictionary": {"compression": "none", "dictionary_pagesize_limit": 1 << 20},
    "snappy": {"use_dictionary": False, "compression": "snappy"},
    "zstd": {"compression": "zstd"},
    "gzip": {"compression": "gzip"},
    "checked": {"use_dictionary": False, "compression": "none", "write_page_checksum": True},
    "DELTA_BYTE_ARRAY": {
        "use_dictionary": False,
        "column_encoding": "DELTA_BYTE_ARRAY",
        "compression": "none",
    },
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_damaged_page_names_its_file(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, **ENCODINGS[encoding])
    column = pq.read_metadata(path).row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[start + 30 : start + 200] = b"\xff" * 170  # past the page's header; the footer is whole
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file \("):
        read(SourceConfig(kind="parquet", path=str(path)))


def test_a_letter_that_changed_is_found_where_pages_carry_checksums(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": TEXTS}), path, **ENCODINGS["checked"])
    content = path.read_bytes()
    assert content.count(b"document 7 with") == 1
    path.write_bytes(content.replace(b"document 7 with", b"document 8 with"))
    with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file \(.*CRC"):
        read(SourceConfig(kind="parquet", path=str(path)))


def ids(tmp_path: Path, column: pa.Array, **settings: object) -> list:
    """What the ids of one-word documents come to; the reason where a record is rejected."""
    table = pa.table({"id": column, "text": ["word"] * len(column)})
    found = []
    for kind in ("parquet", "arrow"):
        path = tmp_path / f"a.{kind}"
        if kind == "parquet":
            pq.write_table(table, path)
        else:
            with pa.ipc.new_stream(str(path), table.schema) as writer:
                writer.write_table(table)
        records = read(SourceConfig(kind=kind, path=str(path), **settings))
        found.append(
            [r.id.replace(kind, "*") if isinstance(r, Document) else r.reason for r in records]
        )
    assert found[0] == found[1]
    return found[0]


UUIDS = [uuid.UUID(int=k) for k in (1, 2**127)]


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (pa.array(["a", None]), ["a", "a.*:2"]),
        (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
        (pa.array([7, 2**60]), ["7", str(2**60)]),
        (pa.array([1.0, 2.5, float("nan"), None]), ["1", "2.5", "a.*:3", "a.*:4"]),
        (pa.array([u.bytes for u in UUIDS], pa.uuid()), [str(u) for u in UUIDS]),
        (pa.array([b"\xff" * 4, b"abcd"], pa.binary(4)), ["ffffffff", "abcd"]),
        (pa.array([b"\x80", b"ok"]), ["80", "ok"]),
        (pa.array([decimal.Decimal("1.50")]), ["1.50"]),
        (pa.array([datetime.date(2026, 1, 2)]), ["2026-01-02"]),
        (pa.array([1], pa.timestamp("ns")), ["1970-01-01 00:00:00.000000001"]),
        (pa.array([True, False]), ["a.*:1", "a.*:2"]),
        (pa.array([["x"], []]), ["a.*:1", "a.*:2"]),
        (pa.array([{"oid": "x"}, None]), ["a.*:1", "a.*:2"]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_an_id_column_of_any_type_refuses_nothing(tmp_path, column, wanted) -> None:
    assert ids(tmp_path, column) == wanted


def test_an_id_that_was_asked_for_by_name_must_be_one(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"key": [1], "id": 1.0, "text": "a"}\n{"key": 3.0, "text": "b"}\n')
    bad, good = read(SourceConfig(kind="jsonl", path=str(path), id_field="key"))
    assert isinstance(bad, Rejection) and "'key' holds list" in bad.reason
    assert good.id == "3"
    assert [r.id for r in read(SourceConfig(kind="jsonl", path=str(path)))] == ["1", "a.jsonl:2"]


@pytest.mark.parametrize("value", ["1.0", "true", '{"$oid": "x"}', "[1]", "1e400"])
def test_json_ids_of_any_type_refuse_nothing(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"id": {value}, "text": "a"}}\n')
    (record,) = read(SourceConfig(kind="jsonl", path=str(path)))
    assert record.id == ("1" if value == "1.0" else "a.jsonl:1")


NESTED = [
    {"text": "a", "meta": {"set": {"name": "web"}, "lang": "en"}, "a.b": "flat"},
    {"text": "b", "meta": {"set": None, "lang": "zh"}, "a.b": "top"},
    {"text": "c", "meta": None, "a.b": None},
]
FIELDS = {
    "domain_field": "meta.set.name",
    "language_field": "meta.lang",
    "source_field": "a.b",
    "domain": "none",
    "language": "xx",
}
WANTED = [("a", "web", "en", "flat"), ("b", "none", "zh", "top"), ("c", "none", "xx", "a")]


def seen(config: SourceConfig) -> list[tuple[str, str, str, str]]:
    return [(d.text, d.domain, d.language, d.source) for d in read(config)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "json text", "json column", "map"])
def test_dotted_paths_reach_into_objects_structs_maps_and_json_texts(tmp_path, kind) -> None:
    records = NESTED
    if kind in ("json text", "json column"):
        records = [r | {"meta": json.dumps(r["meta"])} for r in NESTED]
    path = tmp_path / f"a.{kind}"
    if kind in ("jsonl", "json text"):
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
        reader = "jsonl"
    else:
        table = pa.Table.from_pylist(records)
        if kind == "map":
            inner = pa.struct([("name", pa.string())])
            maps = [list(r["meta"].items()) if r["meta"] else None for r in NESTED]
            maps = [m and [("set", m[0][1])] for m in maps]
            column = pa.array(maps, pa.map_(pa.string(), inner))
            table = table.set_column(1, "meta", column).append_column(
                "lang", pa.array(["en", "zh", None])
            )
        reader = "arrow" if kind == "arrow" else "parquet"
        if kind == "arrow":
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table)
        else:
            pq.write_table(table, path)
    fields = FIELDS | ({"language_field": "lang"} if kind == "map" else {})
    assert seen(SourceConfig(kind=reader, path=str(path), **fields)) == WANTED


def test_text_and_id_may_be_nested_too(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"doc": [{"body": "inside", "key": 5, "big": b"\xff"}]}), path)
    config = SourceConfig(kind="parquet", path=str(path), text_field="doc.body", id_field="doc.key")
    (record,) = read(config)
    assert (record.text, record.id) == ("inside", "5")


def test_only_the_fields_asked_for_are_read(tmp_path: Path) -> None:
    """Text that is not UTF-8 beside what is read harms nobody."""
    path = tmp_path / "a.parquet"
    bad = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
    meta = pa.StructArray.from_arrays([pa.array(["web"]), bad], ["name", "bad"])
    pq.write_table(pa.table({"text": ["a"], "meta": meta}), path)
    (record,) = read(SourceConfig(kind="parquet", path=str(path), domain_field="meta.name"))
    assert record.domain == "web"
    (record,) = read(SourceConfig(kind="parquet", path=str(path), domain_field="meta.bad"))
    assert "not UTF-8" in record.reason


@pytest.mark.parametrize("name", ["meta.nothing", "meta.set.name.more", "other.x", "text.x.y"])
def test_a_path_that_leads_nowhere_names_the_columns(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.parquet"
    meta = pa.StructArray.from_arrays(
        [pa.array([{"name": 1}]), pa.array([2])], ["set", "n"]
    )  # older releases of pyarrow sort the fields of a dictionary
    table = pa.table({"text": ["a"], "meta": meta})
    pq.write_table(table, path)
    config = SourceConfig(kind="parquet", path=str(path), domain_field=name)
    if name == "text.x.y":  # a text may hold JSON
        assert [r.domain for r in read(config)] == ["text"]
        return
    with pytest.raises(UserError, match=rf"no column '{name}'.*text, meta\.set\.name, meta\.n"):
        read(config)


def test_a_text_that_begins_as_json_and_is_none_is_a_rejection(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [{"text": "a", "meta": "{'set': 1}"}, {"text": "b", "meta": "plain"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    bad, good = read(SourceConfig(kind="jsonl", path=str(path), domain_field="meta.set"))
    assert "broken JSON in the text that holds 'set'" in bad.reason
    assert good.domain == "text"


@pytest.mark.parametrize("form", ["stream", "file"])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_arrow_files_of_both_forms_in_stripes(tmp_path: Path, form: str, count: int) -> None:
    table = pa.table({"text": pa.array(TEXTS).dictionary_encode(), "unread": range(ROWS)})
    new = pa.ipc.new_stream if form == "stream" else pa.ipc.new_file
    with new(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=300)
    config = SourceConfig(kind="arrow", path=str(tmp_path))
    found = sorted(stripes(config, count), key=lambda record: record.line)
    assert [(d.text, d.line) for d in found] == list(zip(TEXTS, range(1, ROWS + 1), strict=True))


@pytest.mark.parametrize("content", [b"not arrow", b"ARROW1\0\0cut", b""])
def test_what_is_not_arrow_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.arrow: not a readable Arrow file"):
        read(SourceConfig(kind="arrow", path=str(path)))
    with pytest.raises(UserError, match="needs `path`"):
        SourceConfig(kind="arrow")


SHAPES = {
    "text": lambda words: pa.table({"text": words}),
    "large": lambda words: pa.table({"text": pa.array(words, pa.large_string())}),
    "struct": lambda words: pa.table({"text": words, "meta": [{"a": word} for word in words]}),
    "list": lambda words: pa.table({"text": words, "meta": [[word] for word in words]}),
    "map": lambda words: pa.table(
        {"text": words, "meta": pa.array([[(w, w)] for w in words], pa.map_("string", "string"))}
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_offsets_that_lead_out_of_an_arrow_file_end_no_program(tmp_path: Path, shape: str) -> None:
    """Without a look at them, the reader takes bytes from anywhere, or is killed."""
    words = [f"{k:03d} " + "word " * k for k in range(50)]
    table, path = SHAPES[shape](words), tmp_path / "a.arrow"
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    assert len(read(SourceConfig(kind="arrow", path=str(path)))) == 50
    kind = "<i8" if shape == "large" else "<i4"
    offsets = np.cumsum([0] + [len(word) for word in words]).astype(kind).tobytes()
    content = bytearray(path.read_bytes())
    places = [found.start() for found in re.finditer(re.escape(offsets), content)]
    assert len(places) == {"struct": 2, "list": 2, "map": 3}.get(shape, 1)
    at = places[-1] + 10 * np.dtype(kind).itemsize
    content[at : at + 4] = (2**30).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.arrow: not a readable Arrow file \(.*[Oo]ffset"):
        read(SourceConfig(kind="arrow", path=str(path)))


def test_an_index_that_is_in_no_dictionary_ends_no_program(tmp_path: Path) -> None:
    indices = pa.array([0, 1, 2, 1], pa.int32())
    table = pa.table({"text": pa.DictionaryArray.from_arrays(indices, ["a", "b", "c"])})
    path = tmp_path / "a.arrow"
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)
    content, found = path.read_bytes(), np.array([0, 1, 2, 1], "<i4").tobytes()
    assert content.count(found) == 1
    path.write_bytes(content.replace(found, np.array([0, 1, 1 << 28, 1], "<i4").tobytes()))
    with pytest.raises(UserError, match=r"not a readable Arrow file \(.*bounds: 268435456"):
        read(SourceConfig(kind="arrow", path=str(path)))


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_views_and_structs_of_views_are_shared_out_too(kind: str, tmp_path: Path) -> None:
    """Of which pyarrow has no `take`."""
    ids = pa.StructArray.from_arrays([pa.array(["x"] * ROWS, pa.string_view())], ["oid"])
    table = pa.table({"text": pa.array(TEXTS, pa.string_view()), "id": ids})
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    config = SourceConfig(kind=kind, path=str(path))
    found = stripes(config, 3)
    assert sorted(found, key=lambda r: r.line) == read(config)
    assert [r.text for r in read(config)] == TEXTS and found[1].id == f"a.{kind}:4"


@pytest.mark.parametrize("packed", [False, True])
def test_a_text_of_an_arrow_file_that_is_not_utf8_is_one_rejection(
    tmp_path: Path, packed: bool
) -> None:
    column = pa.array([b"good", b"\xff", None, b"too"]).view(pa.string())
    column = column.dictionary_encode() if packed else column
    path = tmp_path / "a.arrow"
    with pa.ipc.new_stream(str(path), pa.schema({"text": column.type})) as writer:
        writer.write_table(pa.table({"text": column}))
    found = read(SourceConfig(kind="arrow", path=str(path)))
    assert [isinstance(record, Document) for record in found] == [True, False, False, True]
    assert "not UTF-8" in found[1].reason


def write(table: pa.Table, kind: str, path: Path) -> SourceConfig:
    """A source of the one table."""
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as stream:
            stream.write_table(table)
    return SourceConfig(kind=kind, path=str(path))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_texts_of_the_logical_type_json_are_looked_into(tmp_path: Path, kind: str) -> None:
    meta = pa.array([json.dumps({"set": {"name": "web", "id": k}}) for k in range(3)], pa.json_())
    table = pa.table({"text": ["a", "b", "c"], "meta": meta, "in": pa.array([{"x": 1}] * 3)})
    table = table.set_column(2, "in", pa.StructArray.from_arrays([meta], ["meta"]))
    source = write(table, kind, tmp_path / "a")
    for before in ("", "in."):
        paths = {"domain_field": "meta.set.name", "id_field": "meta.set.id"}
        paths = {setting: before + path for setting, path in paths.items()}
        found = read(dataclasses.replace(source, **paths))
        assert [(r.domain, r.id) for r in found] == [("web", "0"), ("web", "1"), ("web", "2")]
    found = read(dataclasses.replace(source, text_field="meta"))
    assert [r.text for r in found] == meta.to_pylist()


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_columns_of_one_name_are_refused_where_they_are_asked_for(tmp_path, kind) -> None:
    table = pa.Table.from_arrays([pa.array(["a"])] * 4, names=["text", "more", "more", "id"])
    source = write(table, kind, tmp_path / "a")
    assert [record.text for record in read(source)] == ["a"]
    with pytest.raises(UserError, match=r"a: several columns are called 'more' .*text_field\)"):
        read(dataclasses.replace(source, text_field="more"))
    twice = pa.StructArray.from_arrays([pa.array(["a"])] * 2, names=["text", "text"])
    source = write(pa.table({"in": twice}), kind, tmp_path / "b")
    with pytest.raises(UserError, match=r"called 'in\.text'"):
        read(dataclasses.replace(source, text_field="in.text"))
