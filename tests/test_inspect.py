import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax import inspect
from frame_jax.main import main
from frame_jax.run import integrity
from frame_jax.run.directory import RunDirectory, list_parts, write_json
from tests.integration.small_run import write_config, write_corpus
from tests.report.synthetic import make_partition

ESCAPES = "\x1b[2J\x1b]0;title\x07\x9b31m\u202e\r\b"
HOSTILE = {"id": f"{ESCAPES}-1", "text": f"{ESCAPES} seen [/bold] ", "domain": ESCAPES} | {
    key: ESCAPES for key in ("source", "language")
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A tokenized run, with an assignment made by hand: document i has PPL i and PD -i."""
    root = tmp_path_factory.mktemp("inspect")
    write_corpus(root / "corpus.jsonl")
    with (root / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(HOSTILE) + "\n")
    assert main(["--config", str(write_config(root)), "--until", "tokenize"]) == 0
    directory = RunDirectory(root / "run")
    table = pa.concat_tables(pq.read_table(p) for p in list_parts(directory.tokens, ".parquet"))
    number = [float(doc_id.split("-")[1]) for doc_id in table["doc_id"].to_pylist()]
    columns = {
        "ppl": number,
        "pd": [-n for n in number],
        "quadrant": ["Q1" if n < 100 else "Q2" for n in number],
        "copies": [int(split == "train") for split in table["split"].to_pylist()],
    }
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    directory.quadrants.mkdir()
    pq.write_table(table, directory.assignment)
    write_json(directory.partition, make_partition().to_json())
    return directory


def test_documents_come_in_the_order_asked_for_with_their_text(directory, capsys) -> None:
    arguments = [str(directory.root), "--domain", "code", "-n", "3", "--characters", "40"]
    rows = inspect.choose_documents(
        directory,
        inspect.parser().parse_args([*arguments, "--by", "lowest-ppl", "--quadrant", "Q2"]),
    )
    assert [row["ppl"] for row in rows] == sorted(row["ppl"] for row in rows)
    assert all(row["quadrant"] == "Q2" and row["ppl"] >= 100 for row in rows)
    assert inspect.main([*arguments, "--by", "highest-ppl"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("PPL") == 3 and "code-source / code / code" in shown


def test_a_seed_gives_the_same_choice_and_another_seed_another(directory) -> None:
    def chosen(seed: str) -> list[str]:
        options = inspect.parser().parse_args([str(directory.root), "-n", "8", "--seed", seed])
        return [row["doc_id"] for row in inspect.choose_documents(directory, options)]

    assert chosen("1") == chosen("1") != chosen("2")


def test_what_is_not_there_is_said(directory, tmp_path: Path, capsys) -> None:
    assert inspect.main([str(directory.root), "--quadrant", "Q9"]) == 2
    assert "no document has quadrant Q9" in capsys.readouterr().err
    assert inspect.main([str(tmp_path)]) == 2
    assert "--until partition" in capsys.readouterr().err


def test_nothing_of_a_document_reaches_the_terminal_as_a_command(directory, capsys) -> None:
    """Neither text nor id, nor a label in the list of what there is."""
    split = pa.concat_tables(pq.read_table(p) for p in list_parts(directory.tokens, ".parquet"))
    splits = dict(zip(split["doc_id"].to_pylist(), split["split"].to_pylist(), strict=True))
    arguments = ["--domain", ESCAPES, "--split", splits[HOSTILE["id"]]]
    assert inspect.main([str(directory.root), *arguments]) == 0
    assert inspect.main([str(directory.root), "--source", ESCAPES, "--quadrant", "Q2"]) == 2
    shown = capsys.readouterr()
    assert "seen [/bold]" in shown.out and "no document has" in shown.err
    assert not set("\x1b\x07\x9b\u202e\r\b") & set(shown.out + shown.err)


@pytest.mark.parametrize("option", ["-n", "--characters"])
def test_a_number_of_none_is_refused(directory, option: str, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        inspect.main([str(directory.root), option, "0"])
    assert "invalid" in capsys.readouterr().err


def test_a_terminal_obeys_nothing_in_a_document() -> None:
    hostile = "\x1b[2J\x1b]0;title\x07\x9b31m\u202eevil\u2066\r\x00 plain\n\ttext 中文"
    shown = inspect.printable(hostile)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
    assert not set("\x7f\x9b\u202e\u2066") & set(shown)
    assert shown.endswith(" plain\n\ttext 中文") and "\\x1b" in shown


def test_a_damaged_assignment_is_refused_in_words(directory, tmp_path, capsys) -> None:
    run = RunDirectory(shutil.copytree(directory.root, tmp_path / "run"))
    rows = run.quadrants / "Q1" / "part-00000-of-00001.arrayrecord"
    rows.parent.mkdir()
    rows.touch()
    integrity.record_checksums(run, "partition", ["quadrants"])
    rows.unlink()  # which shows no documents: not missed
    assert inspect.main([str(run.root)]) == 0
    run.assignment.write_bytes(run.assignment.read_bytes()[:-200])
    capsys.readouterr()
    assert inspect.main([str(run.root)]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {run.assignment} is damaged") and "--redo partition" in shown
