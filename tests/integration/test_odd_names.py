"""A run directory may have any name: phases and entry points read what lies in it, and nothing
else."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from frame_jax import checkpoints, export_order, export_scores, inspect, verify_order
from frame_jax.config.file import load
from frame_jax.config.scoring import TableConfig
from frame_jax.export import checkpoint as export
from frame_jax.main import main
from frame_jax.models.transformer import read_description
from frame_jax.run.directory import RunDirectory, list_parts, read_json
from frame_jax.scoring import table
from tests.integration.small_run import settings, write_config, write_corpus

# Columns, quotes and a backslash; and patterns, beside what they would match.
pytestmark = pytest.mark.slow
NAMES = ("split=train/quadrant=Q1/tokens=10B/part=0/it's/back\\slash", "a[1]/a*")
NEIGHBOURS = ("a1/a*", "a[1]/ab", "a1/ab")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run of a corpus with a duplicate, in a folder of a harmless name."""
    root = tmp_path_factory.mktemp("names")
    write_corpus(root / "corpus.jsonl")
    with (root / "corpus.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": "prose-7", "text": "the same id again"}) + "\n")
    given = settings(root)
    training = {"batch_size": 16, "milestones": 1, "steps": 12, "lr_schedule": {"peak": 0.01}}
    for name in ("weak", "strong"):
        given["reference"][name]["training"] = training
    given["corpus"]["max_rejected_fraction"] = 0.01
    given["pretrain"]["training"] = training
    write_config(root, **given)
    assert main(["--config", str(root / "run.yaml")]) == 0
    return RunDirectory(root / "run")


def spoil(directory: RunDirectory) -> None:
    """Gives a run other splits and quadrants: what must not be read in place of its neighbour's."""
    for path in [*list_parts(directory.tokens, ".parquet"), directory.assignment]:
        table = pq.read_table(path)
        for name, value in (("split", "train"), ("quadrant", "Q4")):
            if name in table.column_names:
                column = pa.array([value] * len(table))
                table = table.set_column(table.column_names.index(name), name, column)
        pq.write_table(table, path)


@pytest.fixture(scope="module", params=NAMES)
def odd(request: pytest.FixtureRequest, plain: RunDirectory) -> RunDirectory:
    """A copy of that run in a folder of another name; and spoiled ones beside the pattern."""
    directory = RunDirectory(plain.root.parent / request.param)
    shutil.copytree(plain.root, directory.root)
    for name in NEIGHBOURS if "*" in request.param else ():
        neighbour = RunDirectory(plain.root.parent / name)
        shutil.copytree(plain.root, neighbour.root)
        spoil(neighbour)
    return directory


def page(directory: RunDirectory) -> str:
    text = (directory.report / "index.html").read_text("utf-8")
    lines = text.replace(str(directory.root), "RUN").splitlines()
    title, where = f"FRAME report: {directory.root.name}", "run_directory"
    return "\n".join(x for x in lines if where not in x).replace(escaped(title), "TITLE")


def escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("'", "&#x27;")


def test_the_report_says_the_same(plain: RunDirectory, odd: RunDirectory) -> None:
    config = str(plain.root.parent / "run.yaml")
    assert main(["--config", config, "--run_directory", str(odd.root), "--redo", "report"]) == 0
    assert page(odd) == page(plain)


def test_the_documents_of_a_quadrant_are_the_same(
    plain: RunDirectory, odd: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for directory in (plain, odd):
        assert inspect.main([str(directory.root), "--quadrant", "Q2", "-n", "3"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and "Q2" in shown[0]


@pytest.mark.parametrize("out", ["stage=Q3/it's", "o[1]"])
def test_the_order_is_the_same(
    out: str, plain: RunDirectory, odd: RunDirectory, tmp_path: Path
) -> None:
    folders = {plain: tmp_path / "plain", odd: tmp_path / out}
    for directory, folder in folders.items():
        command = [str(directory.root), "--to", "parquet", "--shards", "jsonl"]
        assert export_order.main([*command, "--out", str(folder)]) == 0
    left, right = (
        pq.ParquetFile(folder / "order.parquet").read().to_pydict() for folder in folders.values()
    )
    assert left == right and len(set(left["quadrant"])) == 4
    for quadrant in ("Q1", "Q2", "Q3", "Q4"):
        texts = [(f / "data" / quadrant / "00000.jsonl").read_bytes() for f in folders.values()]
        assert texts[0] == texts[1]


def test_the_exported_weights_are_the_same(
    plain: RunDirectory, odd: RunDirectory, tmp_path: Path
) -> None:
    for directory, name in ((plain, "plain"), (odd, "stage=Q3[1]")):
        export.export_trial(directory, "frame", tmp_path / name)
    left, right = (load_file(tmp_path / n / "model.safetensors") for n in ("plain", "stage=Q3[1]"))
    assert all((left[name] == right[name]).all() for name in left)


def scores(directory: RunDirectory, out: Path, given: str | None = None) -> list[dict]:
    """The lines of the table of scores that is written to `out`, a name that may be `given` so."""
    assert export_scores.main([str(directory.root), "--out", given or str(out)]) == 0
    if out.suffix == ".parquet":
        return pq.ParquetFile(out).read().to_pylist()
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def plain_scores(plain: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    rows = scores(plain, tmp_path_factory.mktemp("scores") / "scores.parquet")
    quadrants = {row["quadrant"] for row in rows if row["split"] == "train"}
    assert quadrants == {"Q1", "Q2", "Q3", "Q4"} and len(rows) > 100
    assert {row["split"] for row in rows} == {"train", "held_out"}
    return rows


def test_the_scores_are_the_same(
    plain_scores: list[dict], odd: RunDirectory, tmp_path: Path
) -> None:
    for name in ("back\\slash[1].parquet", "stage=Q3/it's/o[1]/split=train.jsonl"):
        assert scores(odd, tmp_path / name) == plain_scores


def test_scores_in_a_file_that_is_really_called_so(
    plain: RunDirectory, plain_scores: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert scores(plain, tmp_path / "~.parquet", "./~.parquet") == plain_scores


def test_the_manifest_is_the_same_and_verified(
    plain: RunDirectory, odd: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digests = []
    for directory, name in ((plain, "plain"), (odd, "stage=Q3[1]")):
        command = [str(directory.root), "--to", "manifest", "--out", str(tmp_path / name)]
        assert export_order.main(command) == 0
        digests.append(read_json(tmp_path / name / "manifest.json")["digest"])
        given = ["--trial", "frame", "--manifest", str(tmp_path / name)]
        capsys.readouterr()
        assert verify_order.main([str(directory.root), *given]) == 0
        assert f"frame: verified: steps 0 to 11 of 12 compared; manifest {tmp_path / name}" in (
            capsys.readouterr().out
        )
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", [*NAMES, "~/x"])
def test_a_table_of_scores_may_lie_anywhere(plain: RunDirectory, tmp_path: Path, name: str) -> None:
    """As a file, and as its folder; a neighbour that its name as a pattern means is not read."""
    folder = tmp_path / name
    for there, shift in ((folder, 0), *((tmp_path / neighbour, 1) for neighbour in NEIGHBOURS)):
        there.mkdir(parents=True)
        columns = pq.read_table(plain.assignment, columns=["doc_id", "ppl", "pd"]).to_pydict()
        columns["ppl"] = [value + shift for value in columns["ppl"]]
        pq.write_table(pa.table(columns), there / "scores.parquet")
    config = load(plain.root.parent / "run.yaml")
    for number, path in enumerate((folder / "scores.parquet", folder)):
        directory = RunDirectory(tmp_path / f"run-{number}")
        shutil.copytree(plain.tokens, directory.tokens)
        given = TableConfig(str(path), "ppl", "pd")
        scoring = dataclasses.replace(config.scoring, table=given)
        changed = dataclasses.replace(config, scoring=scoring)
        table.check_table(changed)
        table.import_scores(changed, directory)
        parts = list_parts(directory.scores, ".parquet")
        found = {row["doc_id"]: row for part in parts for row in pq.read_table(part).to_pylist()}
        placed = pq.read_table(plain.assignment, columns=["doc_id", "ppl", "pd"]).to_pylist()
        assert found == {row["doc_id"]: row for row in placed}


def test_a_run_made_under_such_a_name_comes_out_the_same(plain: RunDirectory) -> None:
    directory, neighbour = (
        RunDirectory(plain.root.parent / "made" / name / "split=train" / "it's")
        for name in ("a[1]", "a1")
    )
    shutil.copytree(plain.root, neighbour.root)
    spoil(neighbour)
    config = str(plain.root.parent / "run.yaml")
    assert main(["--config", config, "--run_directory", str(directory.root)]) == 0
    for unit in ("tokenize", "score", "partition", "evaluate-frame", "evaluate-random"):
        left, right = (read_json(at.marker(unit))["summary"] for at in (plain, directory))
        assert left == right, unit
    assert read_json(directory.marker("tokenize"))["summary"]["rejected"] == 1
    assert page(directory).count("Q1") == page(plain).count("Q1")
    folder = directory.pretrain("frame")
    step = max(checkpoints.saved_steps(folder / "checkpoints"))
    assert checkpoints.load_params(folder / "checkpoints", read_description(folder), step)
