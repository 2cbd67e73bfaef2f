"""Scores made elsewhere take the place of both models, or are refused in words."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import json
import os
import uuid
from pathlib import Path

import duckdb
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax.config.corpus import SourceConfig
from frame_jax.config.file import load
from frame_jax.config.quadrants import AxesConfig, PartitionConfig
from frame_jax.config.run import RunConfig
from frame_jax.config.scoring import ScoringConfig, TableConfig
from frame_jax.errors import UserError
from frame_jax.quadrants.partition import write_assignment
from frame_jax.run.directory import RunDirectory, list_parts, read_json
from frame_jax.scoring import table
from frame_jax.sql import open_database
from tests.corpus.reading import read
from tests.quadrants.corpus import Corpus, make_corpus, run_config, write


@pytest.fixture
def corpus() -> Corpus:
    return make_corpus(900)


def set_up(corpus: Corpus, root: Path, **settings: str | None) -> tuple[RunConfig, RunDirectory]:
    """A tokenized run without scores, that takes them from `root/theirs.parquet`."""
    directory = write(corpus, root / "run")
    for part in list_parts(directory.scores, ".parquet"):
        part.unlink()
    given = {"path": str(root / "theirs.parquet"), "ppl": "education", "pd": "toxicity"}
    axes = AxesConfig(ppl=4, pd=1) if "pd" in settings and settings["pd"] is None else AxesConfig()
    config = run_config(directory, group_by=[], axes=axes)
    scoring = ScoringConfig(table=TableConfig(**(given | settings)))
    return dataclasses.replace(config, scoring=scoring), directory


def numbers(corpus: Corpus) -> dict[str, np.ndarray]:
    """A column that any number may be in, negative ones too, and one of whole numbers with ties."""
    random = np.random.default_rng(5)
    size = len(corpus.doc_id)
    return {
        "doc_id": corpus.doc_id,
        "education": random.normal(0, 1e4, size),
        "toxicity": random.integers(-3, 4, size),
    }


def give(root: Path, columns: dict[str, object], order: np.ndarray | None = None) -> None:
    found = pa.table(columns)
    pq.write_table(found if order is None else found.take(order), root / "theirs.parquet")


def upper_half(value: np.ndarray, doc_id: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Whether a document's middle lies in the upper half of the tokens, sorted by value and id."""
    order = np.lexsort((doc_id, value))
    middle = np.cumsum(tokens[order]) - tokens[order] / 2
    found = np.zeros(len(value), bool)
    found[order] = middle >= tokens.sum() / 2
    return found


def test_quadrants_are_cut_along_two_columns(corpus: Corpus, tmp_path: Path) -> None:
    config, directory = set_up(corpus, tmp_path)
    columns = numbers(corpus)
    give(tmp_path, columns, np.random.default_rng(1).permutation(len(corpus.doc_id)))
    table.check_table(config)
    found = table.import_scores(config, directory)
    scored = corpus.split != "reference"
    assert found["documents"] == scored.sum()
    [warning] = found["warnings"]
    assert f"{(~scored).sum()} lines name no training or held-out document" in warning
    assert [part.name for part in list_parts(directory.scores, ".parquet")] == [
        part.name for part in list_parts(directory.tokens, ".parquet")
    ]
    write_assignment(config.partition, config.scoring, directory)
    lines = {row["doc_id"]: row for row in pq.read_table(directory.assignment).to_pylist()}
    train = np.flatnonzero(corpus.split == "train")
    ids, tokens = corpus.doc_id[train], corpus.tokens[train]
    first, second = (columns[name][train] for name in ("education", "toxicity"))
    high = upper_half(first, ids, tokens)
    for half, names in ((~high, ("Q1", "Q2")), (high, ("Q3", "Q4"))):
        upper = upper_half(second[half], ids[half], tokens[half])
        assert [lines[doc_id]["quadrant"] for doc_id in ids[half]] == [names[int(u)] for u in upper]
    for number, doc_id in enumerate(corpus.doc_id[scored]):
        assert lines[doc_id]["ppl"] == columns["education"][scored][number]
        assert lines[doc_id]["pd"] == columns["toxicity"][scored][number]
    said = read_json(directory.partition)
    assert said["names"] == ["education", "toxicity"] and said["ppl_model"] is None
    quadrant = train[[lines[doc_id]["quadrant"] == "Q4" for doc_id in ids]]
    for key, column in (("ppl", "education"), ("pd", "toxicity")):
        mean = np.average(columns[column][quadrant], weights=corpus.tokens[quadrant])
        assert said["quadrants"]["Q4"][key] == pytest.approx(mean, rel=1e-8)
    assert said["warnings"] == []  # of a negative PD, which says nothing here


def test_documents_of_one_length_are_cut_at_quantiles(tmp_path: Path) -> None:
    corpus = make_corpus(901)
    corpus.tokens[:] = 10
    config, directory = set_up(corpus, tmp_path, pd=None)
    give(tmp_path, {"doc_id": corpus.doc_id, "education": np.random.default_rng(2).random(901)})
    table.import_scores(config, directory)
    write_assignment(config.partition, config.scoring, directory)
    rows = pq.read_table(directory.assignment).to_pylist()
    train = [row for row in rows if row["split"] == "train"]
    values = np.array([row["ppl"] for row in train])
    cuts = np.quantile(values, [0.25, 0.5, 0.75])
    near = np.abs(values[:, None] - cuts).min(axis=1) < 0.004  # a document between two of them
    bins = np.searchsorted(cuts, values)
    assert near.sum() < 20
    for row, index in zip(np.array(train)[~near], bins[~near], strict=True):
        assert row["quadrant"] == f"P{index + 1}D1"


def test_our_own_numbers_come_back_as_the_same_quadrants(corpus: Corpus, tmp_path: Path) -> None:
    directory = write(corpus, tmp_path / "ours")
    write_assignment(PartitionConfig(), ScoringConfig(), directory)
    ours = pq.read_table(directory.assignment)
    config, directory = set_up(corpus, tmp_path, ppl="ppl", pd="pd")
    pq.write_table(ours.select(["doc_id", "ppl", "pd"]), tmp_path / "theirs.parquet")
    table.import_scores(config, directory)
    write_assignment(PartitionConfig(), config.scoring, directory)
    theirs = pq.read_table(directory.assignment)
    assert theirs.sort_by("doc_id").to_pylist() == ours.sort_by("doc_id").to_pylist()


def test_texts_that_are_numbers_other_names_and_several_files_in_a_bucket(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = {"ppl": 'a "b"', "pd": "c.d", "doc_id": "key"}
    config, directory = set_up(corpus, tmp_path, path="memory://scores/*.parquet", **names)
    columns = numbers(corpus)
    corpus.doc_id[0] = "7"
    given = {
        "key": columns["doc_id"],
        'a "b"': [str(value) for value in columns["education"]],
        "c.d": pa.array(columns["toxicity"], pa.int8()),
    }
    bucket = fsspec.filesystem("memory")
    try:
        for index, chosen in enumerate(np.array_split(np.arange(900), 2)):
            give(tmp_path, given, chosen)
            content = (tmp_path / "theirs.parquet").read_bytes()
            bucket.pipe(f"/scores/{index}.parquet", content)
        table.check_table(config)
        table.import_scores(config, directory)
    finally:
        bucket.rm("/scores", recursive=True)
    parts = list_parts(directory.scores, ".parquet")
    found = {row["doc_id"]: row for part in parts for row in pq.read_table(part).to_pylist()}
    for number in np.flatnonzero(corpus.split != "reference")[1:]:
        row = found[columns["doc_id"][number]]
        assert row["ppl"] == columns["education"][number]
        assert row["pd"] == columns["toxicity"][number]


def test_held_out_documents_may_have_no_numbers(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, directory = set_up(corpus, tmp_path)
    columns = numbers(corpus)
    held_out = np.flatnonzero(corpus.split == "held_out")
    columns["education"][held_out[:2]] = np.nan
    kept = np.setdiff1d(np.arange(900), [*held_out[2:5], *np.flatnonzero(~corpus.scored)])
    give(tmp_path, columns, kept)
    found = table.import_scores(config, directory)
    [warning] = found["warnings"]
    assert "5 held-out documents have no numbers, and are in no quadrant" in warning
    assert warning in capsys.readouterr().err
    write_assignment(config.partition, config.scoring, directory)
    without = read_json(directory.partition)["without_quadrant"]
    assert without["train"] == {} and without["held_out"]["unscored"]["documents"] == 5


def test_every_training_document_needs_one_line_with_numbers(
    corpus: Corpus, tmp_path: Path
) -> None:
    config, directory = set_up(corpus, tmp_path)
    columns = numbers(corpus)
    train = np.flatnonzero(corpus.split == "train")
    texts = [str(value) for value in columns["education"]]
    texts[train[0]], texts[train[1]], texts[train[2]] = "n/a", "nan", "inf"
    columns["toxicity"] = pa.array(
        [None if n == train[3] else float(value) for n, value in enumerate(columns["toxicity"])]
    )
    lost = train[10:14]
    order = [*np.setdiff1d(np.arange(900), lost), train[20], train[20], train[21]]
    give(tmp_path, columns | {"education": texts}, np.array(order))
    with pytest.raises(UserError) as error:
        table.import_scores(config, directory)
    message = str(error.value)
    ids = corpus.doc_id
    first = ", ".join(f"'{doc_id}'" for doc_id in ids[lost[:3]])
    assert f"4 training documents have no line ({first})" in message
    assert f"2 documents have several lines ('{ids[train[20]]}', '{ids[train[21]]}')" in message
    assert "3 training documents have no number in the column 'education' " in message
    for number, shown in zip(train[:3], ("n/a", "nan", "inf"), strict=True):
        assert f"'{ids[number]}': {shown}" in message
    said = f"1 training documents have no number in the column 'toxicity' ('{ids[train[3]]}': null)"
    assert said in message
    assert not list_parts(directory.scores, ".parquet")
    assert not list(directory.scores.glob("*.json"))


def test_a_lost_part_is_made_again_but_not_from_another_table(
    corpus: Corpus, tmp_path: Path
) -> None:
    config, directory = set_up(corpus, tmp_path)
    columns = numbers(corpus)
    give(tmp_path, columns)
    table.import_scores(config, directory)
    parts = list_parts(directory.scores, ".parquet")
    before = [part.read_bytes() for part in parts]
    parts[1].unlink()
    give(tmp_path, columns, np.arange(900)[::-1])  # the same numbers in another order
    table.import_scores(config, directory)
    assert [part.read_bytes() for part in parts] == before
    columns["education"][np.flatnonzero(corpus.split == "train")[0]] += 1e-9
    give(tmp_path, columns)
    with pytest.raises(UserError, match=r"not those that the parts .*--redo score"):
        table.import_scores(config, directory)
    assert [part.read_bytes() for part in parts] == before


REFUSED = {
    "no file": ({"path": "/nowhere/*.parquet"}, "no Parquet file at /nowhere"),
    "no such column": ({"ppl": "ducation"}, "scoring.table.ppl: .* has no column 'ducation'; it h"),
    "no ids": ({"doc_id": "id"}, "scoring.table.doc_id: .* it has: doc_id, education, toxicity"),
    "no numbers": ({"pd": "lists"}, r"the column 'lists' of .* holds (INTEGER|BIGINT)\[\], not n"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_unfit_table_is_refused_before_the_corpus_is_read(
    corpus: Corpus, tmp_path: Path, case: str
) -> None:
    changed, message = REFUSED[case]
    config, _ = set_up(corpus, tmp_path, **changed)
    give(tmp_path, numbers(corpus) | {"lists": [[1]] * 900})
    with pytest.raises(UserError, match=message):
        table.check_table(config)


def test_what_is_no_parquet_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    config, _ = set_up(corpus, tmp_path)
    (tmp_path / "theirs.parquet").write_text(json.dumps({"doc_id": "a", "education": 1}))
    with pytest.raises(UserError, match=r"theirs.parquet cannot be read as a Parquet table"):
        table.check_table(config)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("scoring: {table: {path: x, ppl: rank}}", "scoring.table names one column"),
        ("scoring: {table: {path: x, ppl: a, pd: a}}", "ppl and scoring.table.pd name one column"),
        ("scoring: {table: {path: x, ppl: a, pd: b, doc_id: b}}", "doc_id name one column, 'b'"),
        ("scoring: {unit: byte, table: {path: x, ppl: a, pd: b}}", "scoring.unit is of no use"),
        ("scoring: {table: {path: '', ppl: a, pd: b}}", "scoring.table.path must not be empty"),
        ("scoring: {table: {path: x, pdd: b}}", "pdd"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"run_directory: x\ncorpus: {{sources: [{{kind: text, path: x}}]}}\n{line}\n")
    with pytest.raises(UserError, match=message):
        load(path)


def test_what_other_programs_keep_in_the_tables_folder_is_left_out_and_named(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, directory = set_up(corpus, tmp_path, path=str(tmp_path / "theirs"))
    columns = numbers(corpus)
    for name in ("part-0.parquet", "_temporary/0/part-0.parquet"):
        path = tmp_path / "theirs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path)
    log = tmp_path / "theirs/_delta_log/00010.checkpoint.parquet"
    log.parent.mkdir()
    pq.write_table(pa.table({"add": ["no score"]}), log)
    pq.write_table(pa.table(columns), tmp_path / "theirs" / "part-1.parq")
    table.check_table(config)
    said = capsys.readouterr().err
    names = "_delta_log/00010.checkpoint.parquet, _temporary/0/part-0.parquet, part-1.parq"
    assert f"left out of {tmp_path / 'theirs'}, as no data by the names: {names}\n" in said
    assert (
        table.import_scores(config, directory)["documents"] == (corpus.split != "reference").sum()
    )
    # Asked for by name, a file is data.
    scoring = ScoringConfig(table=TableConfig(str(log), "education", "toxicity"))
    with pytest.raises(UserError, match="has no column 'doc_id'; it has: add"):
        table.check_table(dataclasses.replace(config, scoring=scoring))


UUIDS = [uuid.UUID(int=k) for k in (1, 2**127)]
IDS = [
    pa.array(["a", "b"], pa.string_view()),
    pa.array(["a", "b"]).dictionary_encode(),
    pa.array([7, 2**60]),
    pa.array([2**64 - 1], pa.uint64()),
    pa.array([1.0, 2.5, -0.0, 1e22, 0.1, 5e-324, 123456789012345680.0]),
    pa.array([0.1, 3.0], pa.float32()),
    pa.array([u.bytes for u in UUIDS], pa.uuid()),
    pa.array([b"\xff" * 4, b"abcd"], pa.binary(4)),
    pa.array([b"\x80", b"ok", "中".encode()]),
    pa.array([decimal.Decimal("1.50")]),
    pa.array([datetime.date(2026, 1, 2)]),
]


@pytest.mark.parametrize("ids", IDS, ids=lambda column: str(column.type))
def test_ids_are_those_that_a_corpus_with_the_same_column_has(tmp_path: Path, ids) -> None:
    columns = {"id": ids, "text": ["word"] * len(ids), "x": np.arange(len(ids)) / 2}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    wanted = [record.id for record in read(SourceConfig("parquet", str(tmp_path / "a.parquet")))]
    given = TableConfig(str(tmp_path / "a.parquet"), "x", doc_id="id")
    documents = {"doc_id": wanted, "part": 0, "row": range(len(ids)), "split": "train"}
    documents = {k: [v] * len(ids) if k in ("part", "split") else v for k, v in documents.items()}
    pq.write_table(pa.table(documents), tmp_path / "part-00000-of-00001.parquet")
    with open_database(tmp_path / "scratch") as connection:
        table.join_table(connection, given, [tmp_path / "part-00000-of-00001.parquet"])
        assert list(table.table_errors(connection, given)) == []
        found = connection.execute("SELECT doc_id, ppl FROM joined ORDER BY row").fetchall()
    assert found == [(doc_id, row / 2) for row, doc_id in enumerate(wanted)]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([True] * 3),
        pa.array([["x"]] * 3),
        pa.array([{"oid": "x"}] * 3),
        pa.array([1, 2, 3], pa.timestamp("ns")),
    ],
    ids=lambda column: str(column.type),
)
def test_a_column_that_holds_no_ids_is_refused(corpus: Corpus, tmp_path: Path, ids) -> None:
    config, _ = set_up(corpus, tmp_path)
    give(tmp_path, {"doc_id": ids, "education": [1.0] * 3, "toxicity": [2.0] * 3})
    with pytest.raises(UserError, match=r"scoring.table.doc_id: the column .* not ids: write"):
        table.check_table(config)


def test_every_file_of_a_table_is_looked_at(corpus: Corpus, tmp_path: Path) -> None:
    """Ids and numbers may have a type of their own in each; a column must be in all."""
    corpus.doc_id = np.array([str(number) for number in np.random.default_rng(3).permutation(900)])
    config, directory = set_up(corpus, tmp_path, path=str(tmp_path / "theirs"))
    columns = numbers(corpus)
    chosen = np.array_split(np.arange(900), 3)
    (tmp_path / "theirs").mkdir()
    for number, (rows, kind) in enumerate(zip(chosen, (int, float, str), strict=True)):
        given = {name: values[rows] for name, values in columns.items()}
        given["doc_id"] = given["doc_id"].astype(int).astype(kind)
        whole = np.rint(given["education"])
        given["education"] = whole.astype(int) if number == 0 else given["education"]
        pq.write_table(pa.table(given), tmp_path / f"theirs/{number}.parquet")
    table.check_table(config)
    table.import_scores(config, directory)
    parts = list_parts(directory.scores, ".parquet")
    found = {row["doc_id"]: row for part in parts for row in pq.read_table(part).to_pylist()}
    columns["education"][chosen[0]] = np.rint(columns["education"][chosen[0]])
    for number in np.flatnonzero(corpus.split != "reference"):
        assert found[corpus.doc_id[number]]["ppl"] == columns["education"][number]
    second = tmp_path / "theirs/1.parquet"
    pq.write_table(pa.table({"doc_id": [1], "education": [1.0]}), second)
    with pytest.raises(UserError, match=rf"pd: {second} has no column 'toxicity'; it has: doc_id,"):
        table.check_table(config)


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9.parquet"), "back\\slash[1].parquet"])
def test_a_file_name_that_duckdb_does_not_read_is_refused(
    corpus: Corpus, tmp_path: Path, name: str
) -> None:
    config, _ = set_up(corpus, tmp_path, path=str(tmp_path / "theirs"))
    give(tmp_path, numbers(corpus))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs.parquet").rename(tmp_path / "theirs" / name)
    with pytest.raises(UserError, match=r"scoring.table.path: .*: rename it") as error:
        table.check_table(config)
    str(error.value).encode("utf-8")


def test_a_fault_of_the_storage_is_no_fault_of_the_table(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, directory = set_up(corpus, tmp_path)
    give(tmp_path, numbers(corpus))

    def fails(*_: object) -> None:
        raise duckdb.IOException('Could not read from file "x": Input/output error')

    monkeypatch.setattr(table, "id_in_sql", fails)
    with pytest.raises(UserError, match="the storage or the network failed"):
        table.import_scores(config, directory)
    monkeypatch.setattr(table, "parquet_table", fails)
    with pytest.raises(UserError, match="the storage or the network failed"):
        table.check_table(config)


def test_a_column_of_one_value_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    config, directory = set_up(corpus, tmp_path)
    give(tmp_path, numbers(corpus) | {"toxicity": np.full(900, 3)})
    table.import_scores(config, directory)
    with pytest.raises(UserError, match=r"toxicity has one value for all .*scoring.table"):
        write_assignment(config.partition, config.scoring, directory)


def test_columns_that_only_capitals_tell_apart(corpus: Corpus, tmp_path: Path) -> None:
    """DuckDB, which knows no capitals, calls the second `ppl_1`; twice the same name is refused."""
    config, directory = set_up(corpus, tmp_path, path=str(tmp_path / "theirs"), ppl="ppl", pd="PPL")
    columns = numbers(corpus)
    own = {"doc_id": corpus.doc_id, "ppl": columns["education"], "PPL": columns["toxicity"]}
    (tmp_path / "theirs").mkdir()
    for number, order in enumerate((["doc_id", "PPL", "ppl"], ["ppl", "doc_id", "PPL"])):
        half = slice(450 * number, 450 * (number + 1))
        given = pa.table({name: own[name][half] for name in order})
        pq.write_table(given, tmp_path / f"theirs/{number}.parquet")
    table.check_table(config)
    table.import_scores(config, directory)
    parts = list_parts(directory.scores, ".parquet")
    found = {row["doc_id"]: row for part in parts for row in pq.read_table(part).to_pylist()}
    for number in np.flatnonzero(corpus.split != "reference"):
        row = found[corpus.doc_id[number]]
        assert row["ppl"] == own["ppl"][number] and row["pd"] == own["PPL"][number]
    twice = pa.Table.from_arrays(
        [pa.array(own[name]) for name in ("doc_id", "ppl", "PPL", "PPL")],
        names=["doc_id", "ppl", "ppl", "PPL"],
    )
    pq.write_table(twice, tmp_path / "theirs/0.parquet")
    with pytest.raises(UserError, match=r"ppl: .* several columns 'ppl'; it has: doc_id, ppl, ppl"):
        table.check_table(config)
    pq.write_table(pa.table({"doc_id": ["a"], "Ppl": [1.0]}), tmp_path / "theirs/0.parquet")
    with pytest.raises(UserError, match=r"no column 'ppl'; it has: doc_id, Ppl$"):
        table.check_table(config)
