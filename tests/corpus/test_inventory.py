"""After tokenize the corpus may move away; while it is there, it must be what it was."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from frame_jax.config.corpus import SourceConfig, TokenizerConfig
from frame_jax.config.file import load
from frame_jax.corpus import tokenize
from frame_jax.corpus.inventory import compare_inventory, expected_signature, keep_inventory
from frame_jax.corpus.parts import corpus_signature
from frame_jax.errors import UserError
from frame_jax.main import main
from frame_jax.planning.plan import read_states
from frame_jax.run import markers, phases
from frame_jax.run.directory import RunDirectory


@pytest.fixture
def made(make_config, write_jsonl, records, tmp_path):
    """Function of kinds and whether tokenize is complete: the config and folder of a run."""

    def make(*kinds: str, complete: bool = True, tokenizer: TokenizerConfig | None = None):
        path = write_jsonl("a.jsonl", records[:60])
        write_jsonl("b.jsonl", records[60:])
        (tmp_path / "texts").mkdir()
        for name in ("one.txt", "two.txt"):
            (tmp_path / "texts" / name).write_text(name)
        places = {"jsonl": path.parent, "text": tmp_path / "texts"}
        sources = [SourceConfig(kind=kind, path=str(places[kind])) for kind in kinds]
        config = make_config(*sources, tokenizer=tokenizer)
        directory = RunDirectory(config.run_directory)
        directory.tokens.mkdir(parents=True)
        keep_inventory(config, directory)
        unit = phases.TOKENIZE
        expected = markers.expected_markers(config, [unit], corpus_signature(config))[unit.name]
        value = {
            "complete": complete,
            "fingerprint": expected.fingerprint,
            "settings": expected.settings,
            "inputs": expected.inputs,
        }
        directory.marker(unit.name).write_text(json.dumps(value))
        return config, directory

    return make


def test_a_corpus_that_moved_away_counts_as_it_was(made, tmp_path, capsys) -> None:
    config, directory = made("jsonl", "text")
    before = corpus_signature(config)
    assert expected_signature(config, directory) == before
    (tmp_path / "data").rename(tmp_path / "archive")
    assert expected_signature(config, directory) == before
    shown = capsys.readouterr().err
    assert "going on without the corpus" in shown and str(tmp_path / "data") in shown
    (tmp_path / "texts").rename(tmp_path / "other")
    assert expected_signature(config, directory) == before
    # To be tokenized again, it must be there.
    with pytest.raises(UserError, match="no file or folder"):
        expected_signature(config, directory, redo="tokenize")
    assert expected_signature(config, directory, redo="score") == before


def test_before_tokenize_is_complete_the_corpus_must_be_there(made, tmp_path) -> None:
    config, directory = made("jsonl", complete=False)
    (tmp_path / "data").rename(tmp_path / "archive")
    with pytest.raises(UserError, match="no file or folder"):
        expected_signature(config, directory)


@pytest.mark.parametrize("complete", [True, False])
def test_a_changed_corpus_is_refused_by_the_names_of_its_files(made, tmp_path, complete) -> None:
    config, directory = made("jsonl", "text", complete=complete)
    data = tmp_path / "data"
    size = (data / "a.jsonl").stat().st_size
    with (data / "a.jsonl").open("ab") as file:
        file.write(b'{"text": "more"}\n')
    (data / "b.jsonl").rename(data / "c.jsonl")
    (tmp_path / "texts" / "two.txt").write_text("changed 1")
    with pytest.raises(UserError) as error:
        expected_signature(config, directory)
    for line in (
        f"corpus.sources[0]: a.jsonl: {size} then, {size + 17} now",
        "corpus.sources[0]: b.jsonl has gone",
        "corpus.sources[0]: c.jsonl has come",
        "corpus.sources[1]: two.txt: 7 then, 9 now",
        "--redo tokenize",
    ):
        assert line in str(error.value)
    # The other source's change is told even where the first has moved away.
    if complete:
        data.rename(tmp_path / "archive")
        (tmp_path / "texts" / "two.txt").write_text("changed again")
        with pytest.raises(UserError, match=r"sources\[1\]: two\.txt: 7 then, 13 now"):
            expected_signature(config, directory)
    else:
        assert expected_signature(config, directory, redo="tokenize") == corpus_signature(config)


def test_many_changes_are_counted(made, tmp_path) -> None:
    config, directory = made("text")
    for k in range(30):
        (tmp_path / "texts" / f"{k:02d}.txt").write_text("new")
    with pytest.raises(UserError, match=r"09\.txt has come\n  and 20 more\n"):
        expected_signature(config, directory)


def test_other_settings_are_left_to_the_markers(made, tmp_path) -> None:
    config, directory = made("jsonl")
    other = dataclasses.replace(
        config, corpus=dataclasses.replace(config.corpus, held_out_fraction=0.1)
    )
    (tmp_path / "data" / "b.jsonl").unlink()
    assert compare_inventory(other, directory) == (corpus_signature(other), [])


def test_a_tokenizer_that_moved_away_or_changed(made, tmp_path, capsys) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("1")
    config, directory = made("jsonl", tokenizer=TokenizerConfig(path=str(path)))
    before = corpus_signature(config)
    path.write_text("2")
    with pytest.raises(UserError, match=r"tokenizer\.path: .*tokenizer\.json has changed"):
        expected_signature(config, directory)
    path.unlink()
    assert expected_signature(config, directory) == before
    assert "tokenizer.path" in capsys.readouterr().err


FINISHED = Path(__file__).parents[1] / "run" / "finished_run"


@pytest.mark.slow
def test_a_finished_run_needs_no_corpus_and_refuses_another(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "run").mkdir()
    for path in FINISHED.iterdir():
        shutil.copy(path, tmp_path / ("run" if path.suffix == ".json" else ".") / path.name)
    monkeypatch.chdir(tmp_path)
    arguments, corpus = ["--config", "config.yaml", "--until", "evaluate"], Path("corpus.jsonl")
    keep_inventory(load("config.yaml"), RunDirectory("run"))
    corpus.rename("archived.jsonl")
    assert main(arguments) == 0
    shown = capsys.readouterr().err
    assert "going on without the corpus" in shown and "nothing to do" in shown
    assert main([*arguments, "--redo", "tokenize"]) == 2  # and nothing was removed
    assert "no file or folder" in capsys.readouterr().err and Path("run/tokenize.json").exists()
    Path("archived.jsonl").rename(corpus)
    size = corpus.stat().st_size
    with corpus.open("a") as file:
        file.write("\n")
    assert main(arguments) == 2
    assert (
        f"corpus.sources[0]: corpus.jsonl: {size} then, {size + 1} now" in capsys.readouterr().err
    )
    config = load("config.yaml")
    states = read_states(config, phases.list_phase_steps(config), corpus_may_be_absent=False)
    assert states["tokenize"].text == "made under other settings"


def test_tokenize_keeps_the_inventory(make_config, write_jsonl, records) -> None:
    path = write_jsonl("a.jsonl", records)
    config = make_config(SourceConfig(kind="jsonl", path=str(path)))
    directory = RunDirectory(config.run_directory)
    tokenize.tokenize_corpus(config, directory)
    kept = json.loads((directory.tokens / "inputs.json").read_text())
    version = f"a.jsonl {path.stat().st_size}"
    assert kept == {"sources": [{"a.jsonl": version}], "tokenizer.path": None}
