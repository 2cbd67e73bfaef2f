"""The phase as a whole: its files, resumption, duplicates and rejected records."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from frame_jax import main
from frame_jax.config.corpus import SourceConfig, TokenizerConfig
from frame_jax.corpus import tokenize, tokenizer_training
from frame_jax.corpus.documents import assign_split
from frame_jax.corpus.inventory import expected_signature, require_splits
from frame_jax.corpus.tokenizer import load_tokenizer
from frame_jax.corpus.tokenizer_training import train_tokenizer
from frame_jax.errors import UserError
from frame_jax.quadrants.partition import write_reference_rows
from frame_jax.records import TokenReader
from frame_jax.run import markers, phases
from frame_jax.run.directory import RunDirectory, list_parts, read_json


def run(config):
    directory = RunDirectory(config.run_directory)
    return tokenize.tokenize_corpus(config, directory), directory


def rows(directory):
    """Every parquet row with the decoded text of its record."""
    tokenizer = load_tokenizer(directory)
    found = []
    for path in list_parts(directory.tokens, ".parquet"):
        reader = TokenReader(path.with_suffix(".arrayrecord"))
        table = pq.read_table(path).to_pylist()
        assert len(reader) == len(table)
        for row, ids in zip(table, reader.read(range(len(table))), strict=True):
            assert ids.dtype == np.uint32 and len(ids) == row["tokens"]
            found.append(row | {"text": tokenizer.decode(ids)})
        reader.close()
    return found


def rejected(directory):
    return [json.loads(line) for line in directory.rejected.read_text("utf-8").splitlines()]


def contents(directory):
    return {
        path.relative_to(directory.root): path.read_bytes()
        for path in directory.root.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def config(make_config, write_jsonl, records):
    path = write_jsonl("a.jsonl", records)
    return make_config(SourceConfig(kind="jsonl", path=str(path)), parts=3)


def test_parts_hold_every_document_exactly(config, records):
    summary, directory = run(config)
    found = rows(directory)
    assert {r["doc_id"]: r["text"] for r in found} == {r["id"]: r["text"] for r in records}
    for part, path in enumerate(list_parts(directory.tokens, ".parquet")):
        table = pq.read_table(path)
        assert set(table["part"].to_pylist()) == {part}
        assert table["row"].to_pylist() == list(range(len(table)))
    for row in found:
        assert row["bytes"] == len(row["text"].encode())
        assert row["split"] == assign_split(row["doc_id"], config.seed, 0.05, 0.2)
    domains = {r["id"]: (r["domain"], r["language"]) for r in records}
    assert {r["doc_id"]: (r["domain"], r["language"]) for r in found} == domains
    assert summary["parts"] == 3 and summary["rejected"] == 0
    for name, count in (("documents", lambda r: 1), ("tokens", lambda r: r["tokens"])):
        wanted: dict = {}
        for row in found:
            wanted[row["split"]] = wanted.get(row["split"], 0) + count(row)
        assert summary[name] == wanted
    assert sum(summary["bytes"].values()) == sum(len(r["text"].encode()) for r in records)
    json.dumps(summary)


@pytest.mark.slow
def test_any_number_of_parts_gives_the_same_documents(config, tmp_path, records, write_jsonl):
    records[7]["id"] = records[100]["id"]  # which one stays must not depend on the parts either
    write_jsonl("a.jsonl", records)
    results = []
    for parts in (1, 4, 150):  # more parts than records: some are empty
        corpus = dataclasses.replace(config.corpus, parts=parts, max_rejected_fraction=0.1)
        changed = dataclasses.replace(
            config, corpus=corpus, run_directory=str(tmp_path / f"run{parts}")
        )
        summary, directory = run(changed)
        assert summary.pop("parts") == parts
        found = [{k: v for k, v in r.items() if k not in ("part", "row")} for r in rows(directory)]
        found.sort(key=lambda r: r["line"])
        results.append((summary, found, rejected(directory), directory.tokenizer.read_bytes()))
    assert results[0] == results[1] == results[2]


def test_another_seed_splits_otherwise_but_tokenises_alike(config, tmp_path):
    _, one = run(config)
    _, two = run(dataclasses.replace(config, seed=1, run_directory=str(tmp_path / "two")))
    a, b = rows(one), rows(two)
    assert [r["text"] for r in a] == [r["text"] for r in b]
    assert [r["split"] for r in a] != [r["split"] for r in b]


def test_a_lost_part_is_made_again_and_the_others_stay(config, records, write_jsonl):
    write_jsonl("a.jsonl", [*records, records[3], records[3], b"broken"])
    corpus = dataclasses.replace(config.corpus, max_rejected_fraction=0.1)
    config = dataclasses.replace(config, corpus=corpus)
    summary, directory = run(config)
    assert summary["rejected"] == 3
    before = contents(directory)
    parts = list_parts(directory.tokens, ".parquet")
    stamps = {path: path.stat().st_mtime_ns for path in parts}
    inodes = {path: path.stat().st_ino for path in parts}
    for lost in (0, 1, 2):
        parts[lost].unlink()  # as if killed before its last file; the others of the part remain
        directory.rejected.unlink()
        assert run(config)[0] == summary
        assert contents(directory) == before
        kept = [path for path in parts if path != parts[lost]]
        assert all(path.stat().st_mtime_ns == stamps[path] for path in kept)
        assert all(path.stat().st_ino == inodes[path] for path in kept)
        stamps = {path: path.stat().st_mtime_ns for path in parts}
        inodes = {path: path.stat().st_ino for path in parts}


@pytest.mark.parametrize("step", ["write_part", "reject_duplicates", "assign_split", "summarise"])
def test_a_run_killed_anywhere_ends_up_the_same(
    config, tmp_path, monkeypatch, step, write_jsonl, records
):
    write_jsonl("a.jsonl", [*records, records[5]])
    corpus = dataclasses.replace(config.corpus, max_rejected_fraction=0.1)
    config = dataclasses.replace(config, corpus=corpus)
    summary, whole = run(config)
    calls = 0
    real = getattr(tokenize, step)

    def killed(*args):
        nonlocal calls
        calls += 1
        if calls == (50 if step == "assign_split" else 1 if step == "summarise" else 2):
            raise KeyboardInterrupt
        return real(*args)

    again = dataclasses.replace(config, run_directory=str(tmp_path / "again"))
    with monkeypatch.context() as patch:
        patch.setattr(tokenize, step, killed)
        for _ in range(2):
            try:
                run(again)
            except KeyboardInterrupt:
                break
    assert calls >= 1
    leftover = RunDirectory(again.run_directory).tokens / ".tmp-1-part-00000-of-00003.parquet"
    leftover.parent.mkdir(parents=True, exist_ok=True)
    leftover.write_bytes(b"of a process that had no time to clean up")
    result, directory = run(again)
    assert result == summary and contents(directory) == contents(whole)


def test_duplicate_ids_keep_the_first_and_list_the_others(make_config, write_jsonl, records):
    path = write_jsonl("b.jsonl", [{"id": "same", "text": "second"}, *records[:20]])
    write_jsonl("a.jsonl", [*records[20:], {"id": "same", "text": "first"}])
    write_jsonl("c.jsonl", [{"id": "same", "text": "third"}, {"id": "o'k\n", "text": "quote"}])
    source = SourceConfig(kind="jsonl", path=str(path.parent))
    summary, directory = run(make_config(source, parts=2, max_rejected_fraction=0.05))
    found = {r["text"]: r["split"] for r in rows(directory) if r["doc_id"] == "same"}
    assert found.pop("first") != "rejected"
    assert found == {"second": "rejected", "third": "rejected"}
    assert sum(summary["documents"].values()) == 122 and summary["rejected"] == 2
    wanted = {(str(path), 1), (str(path.with_name("c.jsonl")), 1)}
    assert {(r["file"], r["line"]) for r in rejected(directory)} == wanted
    first = path.with_name("a.jsonl")
    reason = f"duplicate id 'same', first in {first} line 101"
    assert all(r["reason"] == reason for r in rejected(directory))


def test_too_many_rejected_records_stop_the_run_and_say_where_to_look(
    make_config, write_jsonl, records
):
    path = write_jsonl("a.jsonl", [*records[:98], b"broken", {"id": "no text"}])
    source = SourceConfig(kind="jsonl", path=str(path))
    _, directory = run(make_config(source, max_rejected_fraction=0.02, run="fine"))
    listed = rejected(directory)
    assert {(r["file"], r["line"]) for r in listed} == {(str(path), 99), (str(path), 100)}
    with pytest.raises(UserError) as error:
        run(make_config(source, max_rejected_fraction=0.019))
    message = str(error.value)
    for wanted in (
        "2 of 100 records",
        "max_rejected_fraction",
        "rejected.jsonl",
        f"{path} line 99",
    ):
        assert wanted in message
    assert "broken JSON" in message and "no text" in message


def test_a_corpus_without_documents_is_an_error(make_config, write_jsonl):
    path = write_jsonl("a.jsonl", [b""])
    with pytest.raises(UserError, match="no records at all"):
        run(make_config(SourceConfig(kind="jsonl", path=str(path))))
    path = write_jsonl("b.jsonl", [b"{"])
    with pytest.raises(UserError, match=r"1 of 1 records"):
        run(
            make_config(
                SourceConfig(kind="jsonl", path=str(path)), max_rejected_fraction=1.0, run="other"
            )
        )


@pytest.mark.slow
def test_a_very_long_document_is_one_record(make_config, write_jsonl, records):
    text = "".join(f"line {i} 长文本 of a very long document\n" for i in range(60_000))
    path = write_jsonl("a.jsonl", [{"id": "long", "text": text}, *records[:5]])
    _, directory = run(make_config(SourceConfig(kind="jsonl", path=str(path)), parts=2))
    assert next(r["text"] for r in rows(directory) if r["doc_id"] == "long") == text


def test_processes_share_the_parts(config, monkeypatch, tmp_path):
    from frame_jax.parallel import processes

    _, whole = run(config)
    shared = dataclasses.replace(config, run_directory=str(tmp_path / "shared"))
    directory = RunDirectory(shared.run_directory)
    summaries, sent = [], []

    def broadcast(value):
        if processes.is_first():
            sent.append(value)
        return value if processes.is_first() else sent.pop(0)

    # Two processes, one after the other: the last barrier's work is done by process 0 at its end.
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "barrier", lambda name: None)
    monkeypatch.setattr(processes, "failing_processes", lambda *_: {})
    monkeypatch.setattr(processes, "broadcast_from_first", broadcast)
    for index in (0, 1, 0):
        monkeypatch.setattr(processes, "process_index", lambda index=index: index)
        summaries.append(tokenize.tokenize_corpus(shared, directory))
    assert contents(directory) == contents(whole)
    assert summaries[-1]["parts"] == 3


def test_one_process_alone_reads_all_tables(config, monkeypatch):
    summary, _ = run(config)
    answers = {
        "process_index": 1,
        "process_count": 2,
        "is_first": False,
        "barrier": None,
        "failing_processes": {},
    }
    for name, value in answers.items():
        monkeypatch.setattr(tokenize.processes, name, lambda *_, value=value: value)
    sent = iter([[], "signature", [], summary])
    monkeypatch.setattr(tokenize.processes, "broadcast_from_first", lambda _: next(sent))
    monkeypatch.setattr(tokenize, "summarise", None)
    assert run(config)[0] == summary


def test_texts_that_a_given_tokenizer_loses_are_rejected_wherever_they_are(
    make_config, write_jsonl, tmp_path, monkeypatch
):
    """The look at a sample ends early; an added token swallows a letter in the rest."""
    backend = train_tokenizer(["grün und über", "a plain text"] * 9, 300)
    backend.add_tokens(["ü"])
    backend.save(str(tmp_path / "given.json"))
    monkeypatch.setattr(tokenizer_training, "CHECKED_BYTES", 500)
    lines = [{"id": f"plain-{i}", "text": f"a plain text {i}"} for i in range(99)]
    lines.insert(70, {"id": "lost", "text": "die Tür"})
    path = write_jsonl("a.jsonl", lines)
    source = SourceConfig(kind="jsonl", path=str(path))
    given = TokenizerConfig(path=str(tmp_path / "given.json"))
    summary, directory = run(make_config(source, tokenizer=given, max_rejected_fraction=0.02))
    assert summary["rejected_for"] == {"the tokenizer loses text": 1}
    assert {r["text"] for r in rows(directory)} == {r["text"] for r in lines if r["id"] != "lost"}
    reason = "the tokenizer loses text: 'ür' comes back as '\ufffdr' (character 5)"
    assert rejected(directory) == [{"file": str(path), "line": 71, "reason": reason}]
    with pytest.raises(
        UserError, match=r"1 of 100 records .*Of 1 the tokenizer in tokenizer\.path"
    ):
        run(make_config(source, tokenizer=given, run="strict"))
    # In the sample it is refused at once, in words that fit a byte-level tokenizer.
    write_jsonl("a.jsonl", lines[70:])
    with pytest.raises(UserError, match=r"document 'lost' .*'ür' comes back.*added token \('ü'\)"):
        run(make_config(source, tokenizer=given, run="sampled"))


@pytest.mark.parametrize("kind", ["jsonl", "text"])
def test_a_corpus_that_grows_while_it_is_read_is_refused_at_the_end(
    make_config, write_jsonl, records, tmp_path, monkeypatch, kind
):
    """Some of what came late may be in the parts; the next start would be refused anyway."""
    path = write_jsonl("a.jsonl", records)
    config = make_config(SourceConfig(kind=kind, path=str(path.parent)), parts=3)
    directory = RunDirectory(config.run_directory)
    expected = markers.expected_markers(
        config, [phases.TOKENIZE], expected_signature(config, directory)
    )
    real, calls = tokenize.write_part, []

    def grows(*args):
        calls.append(args)
        real(*args)
        if len(calls) == 1:
            with path.open("ab") as file:
                file.write(b"more")

    def start():
        markers.run_phase_step(config, directory, phases.TOKENIZE, expected["tokenize"])

    with monkeypatch.context() as patch:
        patch.setattr(tokenize, "write_part", grows)
        with pytest.raises(UserError, match=rf"is not what it was.*\n.*{path.name}: \d+ then"):
            start()
    assert not read_json(directory.marker("tokenize"))["complete"]
    with path.open("r+b") as file:  # put back what was there
        file.truncate(path.stat().st_size - 4)
    start()
    assert read_json(directory.marker("tokenize"))["complete"]


def test_an_empty_split_is_said_as_soon_as_it_is_known(make_config, write_jsonl, capsys):
    path = write_jsonl("a.jsonl", [{"text": f"text {i}"} for i in range(3)])
    source = SourceConfig(kind="jsonl", path=str(path))
    config = make_config(source, held_out_fraction=0.0, reference_fraction=0.001)
    _, directory = run(config)
    assert "no document fell into the split 'held_out'" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"corpus\.reference_fraction: 0\.001.*--redo tokenize"):
        write_reference_rows(config, directory)
    for key, phase in (("reference_fraction", "reference"), ("held_out_fraction", "evaluate")):
        config = make_config(source, run="refused", **{key: 0.0})
        with pytest.raises(UserError, match=rf"corpus\.{key} is 0.* phase {phase} would"):
            main.run_phases(config, until=phase)
        assert not directory.root.with_name("refused").exists()  # before anything is read
        require_splits(config, ["tokenize"])
