"""`~` is a home wherever a path is a setting, and a URL is a folder nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from frame_jax import export_order, files, inspect
from frame_jax.config.corpus import SourceConfig
from frame_jax.config.file import load
from frame_jax.config.paths import scheme_of, user_path
from frame_jax.config.settings import flatten_settings
from frame_jax.errors import UserError
from frame_jax.export import checkpoint as export
from frame_jax.main import main
from frame_jax.run.directory import RunDirectory
from tests.arm import make_arm
from tests.corpus.reading import texts
from tests.integration.small_run import settings, write_config, write_corpus


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a corpus and a config; the working directory is elsewhere."""
    folder = tmp_path / "home"
    (tmp_path / "elsewhere").mkdir()
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_corpus(folder / "corpus.jsonl")
    return folder


def test_a_tilde_is_expanded_as_a_shell_would(home: Path) -> None:
    assert user_path("~/runs/x") == home / "runs" / "x" and user_path("~") == home
    for written in ("./~/x", ".//~/x", str(Path.cwd() / "~/x")):
        assert user_path(written) == user_path(user_path(written)) == Path.cwd() / "~/x"
    assert user_path("a/~") == Path("a/~") and user_path(Path("a")) == Path("a")
    with pytest.raises(UserError, match=r"no home folder is known for ~nobody-at-all.*\./~nobody"):
        user_path("~nobody-at-all/x")


def test_urls_are_told_from_paths() -> None:
    assert [scheme_of(t) for t in ("gs://b/r", "S3://b", "/a://b", "a/b", "a:b", "a:/b")] == [
        *("gs", "s3"),
        *[None] * 4,
    ]
    with pytest.raises(UserError, match="mount the bucket"):
        user_path("s3://bucket/m")


@pytest.mark.slow
def test_a_run_directory_in_the_home_folder(home: Path) -> None:
    config = write_config(home, run_directory="~/runs/x")
    assert main(["--config", str(config), "--until", "tokenize"]) == 0
    assert (home / "runs/x/tokens/rejected.jsonl").exists()
    assert list(Path.cwd().iterdir()) == []
    assert "run_directory: ~/runs/x" in (home / "runs/x/config.yaml").read_text()
    assert main(["--config", str(config), "--plan"]) == 0


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket/run"])
def test_a_bucket_is_no_run_directory(url: str, home: Path, capsys) -> None:
    config = write_config(home, run_directory=url)
    for arguments in ([], ["--plan"]):
        assert main(["--config", str(config), *arguments]) == 2
        shown = capsys.readouterr().err
        assert f"run_directory: {url} is a URL" in shown and "Traceback" not in shown
        assert f"--checkpoint_root {url}" in shown and "mount" in shown
    for entry in (inspect.main, export.main, export_order.main):
        out = [] if entry is inspect.main else ["--out", "o"]
        format_ = ["--to", "parquet"] if entry is export_order.main else []
        assert entry([url, *out, *format_]) == 2
        assert "is a URL" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


def test_exports_in_the_home_folder(home: Path) -> None:
    make_arm(home / "run")
    assert export.main(["~/run", "--out", "~/model"]) == 0
    assert (home / "model/model.safetensors").exists() and list(Path.cwd().iterdir()) == []


def test_doors_say_which_folder_they_looked_into(home: Path, capsys) -> None:
    assert inspect.main(["~/run"]) == 2
    assert str(home / "run" / "quadrants") in capsys.readouterr().err
    assert export_order.main(["~/run", "--to", "parquet", "--out", "~/o"]) == 2
    assert f"{home / 'run'} has no quadrants" in capsys.readouterr().err


def refused(home: Path, capsys, *arguments: str, **changes: object) -> str:
    """What the whole run says to such settings; nothing may have been done for them."""
    assert main(["--config", str(write_config(home, **changes)), *arguments]) == 2
    assert not RunDirectory(home / "run").tokens.exists()
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and shown.count("error: ") == 1
    return shown


ITEM = json.dumps({"question": "2 and 2?", "choices": ["4", "5"], "answer": 0}) + "\n"


@pytest.mark.slow
def test_a_tasks_files_are_read_before_anything_is_done(home: Path, capsys) -> None:
    def tasks(**task: object) -> dict[str, object]:
        return {"tasks": [{"name": "sums", "path": "~/sums.jsonl", **task}]}

    assert f"there is no file {home / 'sums.jsonl'}" in refused(home, capsys, evaluation=tasks())
    (home / "sums.jsonl").write_text(ITEM + "{}\n")
    shown = refused(home, capsys, evaluation=tasks())
    assert f"{home / 'sums.jsonl'}, line 2: an item has the keys question, choices" in shown
    (home / "sums.jsonl").write_text(ITEM)
    shown = refused(home, capsys, evaluation=tasks(num_fewshot=1, examples="~/few.jsonl"))
    assert f"there is no file {home / 'few.jsonl'}" in shown
    (home / "few.jsonl").write_text(ITEM)  # the question itself is no example of it
    shown = refused(home, capsys, evaluation=tasks(num_fewshot=1, examples="~/few.jsonl"))
    assert "~/few.jsonl has 0 examples" in shown and "but num_fewshot is 1" in shown
    config = write_config(home, evaluation=tasks(num_fewshot=1, examples="~/few.jsonl"))
    assert main(["--config", str(config), "--until", "tokenize"]) == 0  # which does no task


def test_a_reference_checkpoint_in_the_home_folder_is_looked_for_there(home: Path, capsys) -> None:
    reference = settings(home)["reference"] | {"weak": {"checkpoint": "~/m"}}
    assert "reference.weak.checkpoint: there is no folder" in refused(
        home, capsys, reference=reference
    )
    (home / "m").mkdir()
    assert f"{home / 'm'} has no config.json" in refused(home, capsys, reference=reference)


def test_fingerprints_hold_what_was_written(home: Path) -> None:
    changes = {"tokenizer": {"path": "~/t.json"}}
    config = load(write_config(home, **changes))
    assert flatten_settings(config)["tokenizer.path"] == "~/t.json"


def sources(*paths: str) -> dict[str, object]:
    return {"sources": [{"kind": "jsonl", "path": path} for path in paths]}


def test_a_corpus_in_nobody_s_home_is_refused_in_words(home: Path, capsys) -> None:
    shown = refused(home, capsys, corpus=sources("~nobody-at-all/x.jsonl"))
    assert "no home folder is known for ~nobody-at-all" in shown
    assert "write ./~nobody-at-all/x.jsonl" in shown


def test_a_table_in_nobody_s_home_is_refused_in_words(home: Path, capsys) -> None:
    table = {"path": "~nobody-at-all/t.parquet", "ppl": "a", "pd": "b"}
    shown = refused(home, capsys, scoring={"table": table})
    assert "no home folder is known for ~nobody-at-all" in shown


@pytest.mark.parametrize("path", ["./~x.jsonl", ".", "*.jsonl", "./~*.jsonl", "./~/*.jsonl"])
def test_a_file_that_is_really_called_so_is_read(home: Path, path: str) -> None:
    for name in ("~x.jsonl", "~/y.jsonl"):
        Path(f"./{name}").absolute().parent.mkdir(exist_ok=True)
        Path(f"./{name}").absolute().write_text(json.dumps({"text": name}) + "\n")
    found = texts(SourceConfig(kind="jsonl", path=path))
    assert found == {".": ["~/y.jsonl", "~x.jsonl"], "./~/*.jsonl": ["~/y.jsonl"]}.get(
        path, ["~x.jsonl"]
    )
    model = Path.cwd() / "~m"
    assert files.local_copy("./~m") == files.local_copy(str(files.local_copy("./~m"))) == model
    assert RunDirectory("./~r").root == Path.cwd() / "~r"


@pytest.mark.parametrize("option", [["--config=~/twice.yaml"], ["--config", "~/twice.yaml"]])
def test_a_config_in_the_home_folder_is_looked_at_for_keys_set_twice(
    home: Path, option: list[str], capsys
) -> None:
    (home / "twice.yaml").write_text(write_config(home).read_text() + "seed: 1\nseed: 2\n")
    assert main([*option, "--until", "tokenize"]) == 2
    assert "`seed` is set twice" in capsys.readouterr().err


@pytest.mark.slow
def test_what_no_file_can_be_called_is_refused_by_every_program(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "there").symlink_to("back")
    (home / "back").symlink_to("there")
    config = str(write_config(home))
    for path, message in (("n" * 300, "too long"), (str(home / "back/run"), "symbolic links")):
        for program in (
            lambda path: main(["--config", config, "--run_directory", path]),
            lambda path: main(["--config", config, "--plan", "--run_directory", path]),
            lambda path: inspect.main([path]),
            lambda path: export.main([path, "--out", "out"]),
            lambda path: export.main(["run", "--out", path]),
        ):
            assert program(path) == 2
            shown = capsys.readouterr().err
            assert message in shown and shown.count("error: ") == 1
    with pytest.raises(UserError, match="has a NUL"):
        RunDirectory("a\0b")


def test_a_name_of_a_folder_fits_into_one(home: Path, capsys) -> None:
    arm = {"n" * 201: {"preset": "random"}}
    assert "200 at most" in refused(home, capsys, curricula=arm)
    tasks = [{"name": "n" * 201, "path": "x.jsonl"}]
    assert "200 at most" in refused(home, capsys, evaluation={"tasks": tasks})
