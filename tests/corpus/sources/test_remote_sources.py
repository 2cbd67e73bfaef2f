"""Sources in a bucket: the same documents, parts and promises as on a disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax import main
from frame_jax.config.corpus import SourceConfig, TokenizerConfig
from frame_jax.config.settings import flatten_settings
from frame_jax.corpus import tokenize
from frame_jax.corpus.documents import Document
from frame_jax.corpus.inventory import expected_signature, keep_inventory
from frame_jax.corpus.parts import corpus_signature
from frame_jax.errors import UserError, print_error
from frame_jax.run import markers, phases
from frame_jax.run.directory import RunDirectory, list_parts
from tests.corpus.reading import read, stripes
from tests.s3_server import Server, s3

__all__ = ["s3"]


@pytest.fixture
def folder(tmp_path: Path, records) -> Path:
    """The same records four times: packed lines, Parquet, Arrow, and texts."""
    data = tmp_path / "corpus"
    for kind in ("jsonl", "parquet", "arrow", "text"):
        (data / kind / "sub").mkdir(parents=True)
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    (data / "jsonl" / "a.jsonl").write_bytes(lines)
    (data / "jsonl" / "sub" / "b.jsonl.zst").write_bytes(
        pa.compress(lines.replace(b"doc-", b"b-"), codec="zstd", asbytes=True)
    )
    table = pa.Table.from_pylist(records)
    pq.write_table(table, data / "parquet" / "sub" / "a.parquet", row_group_size=30)
    with pa.ipc.new_stream(str(data / "arrow" / "a.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    for record in records[:9]:
        (data / "text" / "sub" / f"{record['id']}.txt").write_text(record["text"])
    return data


def without_quadrant(records: list) -> list:
    return [dataclasses.replace(record, file="") for record in records]


@pytest.mark.slow
def test_every_kind_reads_from_a_bucket_what_it_reads_from_a_disk(s3: Server, folder) -> None:
    url = s3.put("bucket", folder)
    s3.every(5, 500, 503)
    for kind, below in (
        ("jsonl", ""),
        ("jsonl", "/**/*.zst"),
        ("jsonl", "/a.jsonl"),
        ("parquet", ""),
        ("arrow", ""),
        ("text", ""),
    ):
        here = SourceConfig(kind=kind, path=f"{folder}/{kind}{below}")
        there = SourceConfig(kind=kind, path=f"{url}/{kind}{below}")
        found = read(there)
        assert without_quadrant(found) == without_quadrant(read(here)) and len(found) >= 9
        assert all(isinstance(r, Document) and r.file.startswith(url) for r in found)
        if kind in ("jsonl", "parquet"):
            ids = sorted(record.id for record in stripes(there, 3))
            assert ids == sorted(record.id for record in found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "text"])
def test_what_is_not_in_the_bucket_is_named(s3: Server, folder, kind) -> None:
    url = s3.put("bucket", folder)
    for path in (f"{url}/nothing", "s3://nobucket/corpus", f"{url}/*.nothing"):
        with pytest.raises(UserError) as error:
            read(SourceConfig(kind=kind, path=path))
        assert repr(path) in str(error.value) and "correct `path`" in str(error.value)


def test_a_damaged_file_in_a_bucket_is_named(s3: Server, folder) -> None:
    packed = folder / "jsonl" / "sub" / "b.jsonl.zst"
    packed.write_bytes(packed.read_bytes()[:-9])
    (folder / "parquet" / "sub" / "a.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    url = s3.put("bucket", folder)
    with pytest.raises(UserError, match=rf"{url}/jsonl/sub/b\.jsonl\.zst: cannot be read \(cut"):
        read(SourceConfig(kind="jsonl", path=f"{url}/jsonl"))
    with pytest.raises(UserError, match=rf"{url}/parquet/sub/a\.parquet: not a readable Parquet"):
        read(SourceConfig(kind="parquet", path=f"{url}/parquet"))


def rows(directory: RunDirectory) -> list[dict]:
    return [
        {k: v for k, v in row.items() if k != "file"}
        for path in list_parts(directory.tokens, ".parquet")
        for row in pq.read_table(path).to_pylist()
    ]


def test_a_killed_run_on_a_failing_bucket_ends_up_as_one_on_a_disk(
    s3: Server, folder, make_config, monkeypatch
) -> None:
    url = s3.put("bucket", folder)
    here = make_config(SourceConfig(kind="jsonl", path=f"{folder}/jsonl"), run="here")
    there = make_config(SourceConfig(kind="jsonl", path=f"{url}/jsonl"), run="there")
    assert corpus_signature(here) == corpus_signature(there)  # names and sizes, wherever they are
    wanted = tokenize.tokenize_corpus(here, RunDirectory(here.run_directory))
    s3.every(6, 500, 503)
    real, calls = tokenize.write_part, 0

    def killed(*args) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        real(*args)

    directory = RunDirectory(there.run_directory)
    with monkeypatch.context() as patch:
        patch.setattr(tokenize, "write_part", killed)
        with pytest.raises(KeyboardInterrupt):
            tokenize.tokenize_corpus(there, directory)
    done = {path: path.stat().st_mtime_ns for path in list_parts(directory.tokens, ".parquet")}
    assert len(done) == 3
    assert tokenize.tokenize_corpus(there, directory) == wanted
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert rows(directory) == rows(RunDirectory(here.run_directory))
    tokens = [p.read_bytes() for p in list_parts(directory.tokens, ".arrayrecord")]
    assert tokens == [
        p.read_bytes() for p in list_parts(RunDirectory(here.run_directory).tokens, ".arrayrecord")
    ]


@pytest.mark.slow
def test_a_bucket_out_of_reach_stops_tokenize_and_nothing_after_it(
    s3: Server, folder, make_config, capsys
) -> None:
    url = s3.put("bucket", folder)
    config = make_config(SourceConfig(kind="jsonl", path=f"{url}/jsonl"))
    directory = RunDirectory(config.run_directory)
    before = corpus_signature(config)
    expected = markers.expected_markers(config, [phases.TOKENIZE], before)["tokenize"]
    marker = {"settings": expected.settings, "inputs": expected.inputs, "complete": False}
    directory.root.mkdir()
    keep_inventory(config, directory)
    directory.marker("tokenize").write_text(json.dumps(marker))
    s3.fault = lambda request: 503
    with pytest.raises(UserError, match=rf"{url}/jsonl: cannot be listed after 6 attempts"):
        expected_signature(config, directory)
    directory.marker("tokenize").write_text(json.dumps(marker | {"complete": True}))
    assert expected_signature(config, directory) == before
    assert f"{url}/jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "text"])
def test_the_signature_of_a_presigned_address_is_written_nowhere(
    s3: Server, folder, make_config, monkeypatch, capsys, kind
) -> None:
    """Nor shown: it is a secret, and another tomorrow, when ids and splits must be the same."""
    s3.put("bucket", folder)
    monkeypatch.setattr(main.compute_dtype, "decide_types", lambda given, config: (config, []))
    below = {"jsonl": "/a.jsonl", "parquet": "/sub/a.parquet", "arrow": "/a.arrow"}
    file = f"{kind}{below.get(kind, '/sub/doc-000-0.txt')}"
    runs = []
    for day in (100, 200):
        signed = fsspec.filesystem("s3").sign(f"bucket/corpus/{file}", expiration=day)
        secret = signed.partition("Signature=")[2].partition("&")[0]
        assert len(secret) > 20 and signed.startswith("http")
        source = SourceConfig(kind=kind, path=signed, id_field=None)
        config = make_config(source, tokenizer=TokenizerConfig(vocab_size=300))
        assert main.run_phases(config, until="tokenize") == (
            day == 100
        )  # it is done by the second day
        directory = RunDirectory(config.run_directory)
        for path in directory.root.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path
        runs.append(rows(directory))
        s3.fault = lambda request: 403
        with pytest.raises(UserError) as error:
            read(source)
        s3.fault = lambda request: None
        print_error(error.value)
        shown = capsys.readouterr().err
        assert secret not in shown and f"bucket/corpus/{file}: cannot be" in shown
    assert runs[0] == runs[1] and len(runs[0]) > 0
    name = file.rpartition("/")[2]
    ids = {row["doc_id"] for row in runs[0]}
    assert ids == ({name} if kind == "text" else {f"{name}:{n}" for n in range(1, 121)})
    stored = json.dumps(flatten_settings(config.corpus))
    assert "Signature" not in stored and name in stored
