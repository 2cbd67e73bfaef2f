"""Which files a path stands for: links, names that are no UTF-8, and what lies among the data."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus.parts import corpus_signature, plan_parts, sample_documents
from frame_jax.corpus.sources import SOURCES
from frame_jax.corpus.sources.listing import list_files
from frame_jax.errors import UserError
from tests.corpus.reading import read, texts


@pytest.fixture
def put(tmp_path: Path):
    def write(name: str, content: object | None = None) -> Path:
        """A file under `data`; by default one record with the name as its text."""
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": name} if content is None else content) + "\n")
        return path

    return write


def names(path: object, endings: tuple[str, ...] = (".jsonl",)) -> list[str]:
    return [file.name for file in list_files(str(path), endings)[0]]


def test_linked_folders_are_searched_like_others(put, tmp_path) -> None:
    data = put("a.jsonl").parent
    for k in range(3):
        path = tmp_path / "elsewhere" / "deep" / f"{k}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    everything = ["a.jsonl", *(f"linked/deep/{k}.jsonl" for k in range(3))]
    for path in (data, data / "**", data / "**/*.jsonl", data / "**/*.js[o]nl"):
        assert names(path) == everything
    assert names(data / "**/deep/*.jsonl") == everything[1:]
    assert names(data / "*/deep/2.jsonl") == ["linked/deep/2.jsonl"]


def test_links_in_a_circle_and_links_to_what_is_there_anyway_add_nothing(put) -> None:
    data = put("2024/b.jsonl").parents[1]
    put("a.jsonl")
    before = names(data)
    (data / "latest").symlink_to("2024")
    (data / "2024" / "up").symlink_to("..")
    (data / "here").symlink_to(".")
    assert names(data) == before == ["2024/b.jsonl", "a.jsonl"]
    assert names(data / "**" / "*.jsonl") == before
    # A pattern that names the link's level means it.
    assert names(data / "la*" / "*.jsonl") == ["latest/b.jsonl"]


def test_links_to_files_stay_files_of_their_own(put) -> None:
    data = put("a.jsonl").parent
    (data / "b.jsonl").symlink_to("a.jsonl")
    assert names(data) == ["a.jsonl", "b.jsonl"]


def test_a_link_to_nothing_is_named(put) -> None:
    data = put("a.jsonl").parent
    (data / "gone.jsonl").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"gone\.jsonl: cannot be read.*link that leads nowhere"):
        names(data)
    (data / "gone.jsonl").unlink()
    (data / "other.txt").symlink_to("nowhere")  # nobody asked for it
    assert names(data) == ["a.jsonl"]


def test_a_folder_that_cannot_be_listed_is_named_unless_it_holds_no_data(
    put, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = put("a.jsonl").parent
    for name in ("closed", ".hidden", "lost+found"):
        put(f"{name}/b.jsonl")
    real = os.scandir

    def scandir(folder):
        if Path(folder).name in ("closed", ".hidden", "lost+found"):
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr("frame_jax.corpus.sources.listing.os.scandir", scandir)
    with pytest.raises(UserError, match=r"closed: cannot be listed \(Permission denied\)"):
        names(data)
    (data / "closed").rename(data / ".closed")
    assert names(data) == ["a.jsonl"]


def test_patterns_match_as_in_a_shell(put) -> None:
    data = put("b/x.jsonl").parents[1]
    for name in ("a.jsonl", "b/c/y.jsonl", "b/c/.z.jsonl", ".h/i.jsonl", "b/c/n.txt", "a[1].jsonl"):
        put(name)
    assert names(data / "*.jsonl") == ["a.jsonl", "a[1].jsonl"]
    assert names(data / "a[1].jsonl") == ["a[1].jsonl"]  # a file goes before a pattern
    assert names(data / "*" / "*.jsonl") == ["b/x.jsonl"]
    assert names(data / "b" / "**" / "*.jsonl") == ["c/y.jsonl", "x.jsonl"]
    assert names(data / "**" / "c" / "*") == ["b/c/n.txt", "b/c/y.jsonl"]
    assert names(data / "b/*/../x.jsonl") == ["c/../x.jsonl"]
    assert names(data / ".h" / "*.jsonl") == ["i.jsonl"]
    assert names(data / "?.jsonl") == ["a.jsonl"]
    assert names(data / "b**" / "x.jsonl") == ["b/x.jsonl"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "text"])
def test_a_name_that_is_not_utf8_is_spelled_out_or_rejected(tmp_path, kind) -> None:
    with (tmp_path / os.fsdecode(b"caf\xe9." + kind.encode())).open("wb") as file:
        if kind == "parquet":
            pq.write_table(pa.table({"text": ["good"]}), file)
        else:
            file.write(b'{"text": "good"}\n')
    (record,) = read(SourceConfig(kind=kind, path=str(tmp_path)))
    record.file.encode("utf-8")
    if kind == "text":
        assert record.reason == "the file's name is not UTF-8"
    else:
        assert (record.text, record.id, record.source) == (
            "good",
            rf"caf\xe9.{kind}:1",
            r"caf\xe9",
        )
        assert record.file == rf"{tmp_path}/caf\xe9.{kind}"


def test_what_other_programs_keep_among_the_data_is_not_read(tmp_path, make_config) -> None:
    table = tmp_path / "table"
    for name, columns in (
        ("part-0.parquet", {"text": ["a document"]}),
        ("_delta_log/00010.checkpoint.parquet", {"add": ["no document"]}),
        ("_temporary/0/part-0.parquet", {"text": ["a document"]}),
    ):
        (table / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), table / name)
    lines = tmp_path / "lines"
    lines.mkdir()
    (lines / "a.jsonl").write_text('{"text": "a record"}\n')
    (lines / "dataset_infos.json").write_text(json.dumps({"default": {"x": 1}}, indent=2))
    config = make_config(
        SourceConfig(kind="parquet", path=str(table)), SourceConfig(kind="jsonl", path=str(lines))
    )
    found = [
        r for chunks in plan_parts(config.corpus) for chunk in chunks for r in chunk.read_records()
    ]
    assert sorted(record.text for record in found) == ["a document", "a record"]
    assert sorted(d.text for d in sample_documents(config.corpus, 10**6)) == [
        "a document",
        "a record",
    ]
    # They count for the signature, as they did when they were read: finished runs stay current.
    before = corpus_signature(config)
    (lines / "dataset_infos.json").write_text("{}")
    assert corpus_signature(config) != before
    # Asked for by name, a file is data.
    source = SourceConfig(kind="jsonl", path=str(lines / "dataset_infos.json"), text_field="t")
    (item,) = SOURCES["jsonl"].list_inputs(source)
    assert not item.ignored
    named = SourceConfig(kind="parquet", path=str(table / "_temporary" / "0" / "*.parquet"))
    assert texts(named) == ["a document"]


def test_tokenize_says_what_it_passed_over(tmp_path, make_config, write_jsonl, records, capsys):
    from frame_jax.corpus import tokenize
    from frame_jax.run.directory import RunDirectory

    path = write_jsonl("a.jsonl", records)
    (path.parent / "dataset_infos.json").write_text(json.dumps({"a": 1, "b": 2}, indent=1))
    config = make_config(SourceConfig(kind="jsonl", path=str(path.parent)))
    summary = tokenize.tokenize_corpus(config, RunDirectory(config.run_directory))
    assert summary["rejected"] == 0
    shown = capsys.readouterr().err
    assert f"keep notes there: {path.parent / 'dataset_infos.json'}" in shown
