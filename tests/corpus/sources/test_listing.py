"""Which files a path stands for: links, names that are no UTF-8, and what lies among the data."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus import tokenize
from frame_jax.corpus.parts import corpus_signature, plan_parts, sample_documents
from frame_jax.corpus.sources import SOURCES
from frame_jax.corpus.sources.listing import list_files
from frame_jax.errors import UserError
from frame_jax.main import main
from frame_jax.run.directory import RunDirectory, read_json
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
    path = write_jsonl("a.jsonl", records)
    (path.parent / "dataset_infos.json").write_text(json.dumps({"a": 1, "b": 2}, indent=1))
    config = make_config(SourceConfig(kind="jsonl", path=str(path.parent)))
    summary = tokenize.tokenize_corpus(config, RunDirectory(config.run_directory))
    assert summary["rejected"] == 0
    shown = capsys.readouterr().err
    assert f"keep notes there: {path.parent / 'dataset_infos.json'}" in shown


def test_files_of_other_endings_are_named_and_counted(tmp_path, make_config, write_jsonl, capsys):
    path = write_jsonl("b.jsonl", [{"text": f"a text {i}"} for i in range(9)])
    for name in ("a.zstd", "c.txt", "d.txt", "e.txt", ".hidden", "dataset_info.json"):
        write_jsonl(name, [{"text": "not read"}])
    shown = {}
    for where in (path.parent, path.parent / "b.*", path):
        config = make_config(SourceConfig(kind="jsonl", path=str(where)), run=f"run {where.name}")
        tokenize.tokenize_corpus(config, RunDirectory(config.run_directory))
        shown[where] = [
            line for line in capsys.readouterr().err.splitlines() if "names end" in line
        ]
    names = ", ".join(str(path.parent / name) for name in ("a.zstd", "c.txt", "d.txt"))
    [line] = shown.pop(path.parent)
    assert line == f"corpus: not read, because of how their names end: {names} and 1 more"
    assert set(map(len, shown.values())) == {0}


def test_files_of_an_earlier_save_are_no_data(tmp_path, make_config, capsys) -> None:
    """`save_to_disk` leaves the files of an earlier call, and lists its own in state.json."""

    def save(folder, count, text):
        for number in range(count):
            name = f"data-{number:05d}-of-{count:05d}.arrow"
            with pa.ipc.new_stream(str(folder / name), pa.schema([("text", pa.string())])) as file:
                file.write_table(pa.table({"text": [f"{text} {number} {i}" for i in range(10)]}))
        listed = [f"data-{number:05d}-of-{count:05d}.arrow" for number in range(count)]
        state = {"_data_files": [{"filename": name} for name in listed], "_split": None}
        (folder / "state.json").write_text(json.dumps(state))

    for split in ("train", "test"):
        (tmp_path / "saved" / split).mkdir(parents=True)
        save(tmp_path / "saved" / split, 5, "old")
        save(tmp_path / "saved" / split, 2, "new")
    for where in ("saved/train", "saved/train/*.arrow", "saved"):
        config = make_config(SourceConfig(kind="arrow", path=str(tmp_path / where)))
        found = [
            r.text
            for part in plan_parts(config.corpus)
            for chunk in part
            for r in chunk.read_records()
        ]
        assert len(found) == (40 if where == "saved" else 20)
        assert all(text.startswith("new") for text in found)
    tokenize.tokenize_corpus(config, RunDirectory(config.run_directory))
    assert f"state.json there does not list it: {tmp_path}/saved/t" in capsys.readouterr().err
    # Another program's file of that name, and a file asked for by its name.
    (tmp_path / "saved" / "test" / "state.json").write_text("[1]")
    assert len(texts(SourceConfig(kind="arrow", path=str(tmp_path / "saved" / "test")))) == 70
    old = next((tmp_path / "saved" / "train").glob("*-of-00005.arrow"))
    assert len(texts(SourceConfig(kind="arrow", path=str(old)))) == 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "text"])
def test_a_run_directory_among_the_texts_is_no_corpus(tmp_path, capsys, kind) -> None:
    """Neither the run's own files nor those of another run beside it, and it starts again."""
    data = tmp_path / "data"
    data.mkdir()
    for number in range(30):
        (data / f"{number}.jsonl").write_text(json.dumps({"text": f"text number {number}"}))
    for name in ("run", "other run", "run"):
        config = {
            "run_directory": str(data / "runs" / name),
            "corpus": {"sources": [{"kind": kind, "path": str(data)}]},
            "tokenizer": {"vocab_size": 300},
        }
        (tmp_path / "config.yaml").write_text(json.dumps(config))
        arguments = ["--config", str(tmp_path / "config.yaml"), "--until", "tokenize"]
        assert main(arguments) == 0
        summary = read_json(data / "runs" / name / "tokenize.json")["summary"]
        assert sum(summary["documents"].values()) == 30 and summary["rejected"] == 0
    assert "nothing to do" in capsys.readouterr().err
    same = [*arguments, "--run_directory", str(data)]
    assert main(same) == 2 and "folder of its own" in capsys.readouterr().err
    assert not (data / "config.yaml").exists() and not (data / "lock").exists()
