"""What a file system lacks is said at the start; what it does not give is not called damaged."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax import checkpoints
from frame_jax.errors import UserError
from frame_jax.main import main
from frame_jax.models.transformer import read_description
from frame_jax.records import TokenReader, write_tokens
from frame_jax.run import integrity, lock, storage
from frame_jax.run.directory import RunDirectory, read_json, write_json
from frame_jax.run.lock import hold_lock
from frame_jax.run.program_exit import find_user_error
from frame_jax.training.checkpointer import Checkpointer
from tests.arm import make_arm
from tests.integration.small_run import write_config, write_corpus
from tests.programs import IMPATIENT, free_port, side_by_side

UNREADABLE = Path("/proc/self/mem")  # a file whose first byte the system refuses with EIO


def test_a_good_file_system_is_left_as_it_was(tmp_path: Path) -> None:
    storage.check_storage(RunDirectory(tmp_path / "run"))
    assert list((tmp_path / "run").iterdir()) == []


def refuse(number: int) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize(
    ("owner", "name", "number", "what"),
    [
        (os, "fsync", errno.ENOSYS, "write and flush a file and read it back"),
        (Path, "replace", errno.ENOTSUP, "rename a file over another"),
        (os, "pwrite", errno.ENOTSUP, "change a file in place"),
        (Path, "rename", errno.EMFILE, "rename a folder"),
        (Path, "unlink", errno.EPERM, "remove files and folders"),
    ],
)
def test_what_a_mount_lacks_is_named_before_anything_is_written(
    owner: object, name: str, number: int, what: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    monkeypatch.setattr(owner, name, refuse(number))
    assert main(["--config", str(write_config(tmp_path))]) == 2
    monkeypatch.undo()
    shown = capsys.readouterr().err
    assert f"cannot {what} ([Errno {number}]" in shown and "docs/storage.md" in shown
    assert list((tmp_path / "run").iterdir()) == []


def test_a_file_system_that_gives_back_something_else_is_refused(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"")
    with pytest.raises(UserError, match="9 bytes were written, 0 others came back"):
        storage.probe_file_system(tmp_path)


def test_a_name_that_no_pattern_can_mean_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose another --run_directory"):
        storage.check_storage(RunDirectory(tmp_path / "a\\b[1]"))


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.2)


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_without_flock_the_file_alone_keeps_a_second_program_out(
    number: int, no_flock: None, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(number))
    directory = RunDirectory(tmp_path)
    with hold_lock(directory):
        shown = capsys.readouterr().err
        assert f"warning: the file system of {tmp_path} has no locks" in shown
        assert os.strerror(number) in shown
        with (
            pytest.raises(UserError, match=f"in use by process {os.getpid()} on"),
            hold_lock(directory),
        ):
            pass
        assert lock.read_holder(tmp_path / "lock") == lock.describe_process()
    assert (tmp_path / "lock").read_bytes() == b""
    (tmp_path / "lock").write_text(f"process 1 on {os.uname().nodename}\n{7:012d}\n")
    with hold_lock(directory):  # the dead beat no more
        pass


def test_without_flock_the_first_of_two_gives_way_when_both_begin(
    no_flock: None, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOSYS))
    monkeypatch.setattr(
        time, "sleep", lambda _: (tmp_path / "lock").write_text("process 9 on other\n")
    )
    with (
        pytest.raises(UserError, match="in use by process 9 on other"),
        hold_lock(RunDirectory(tmp_path)),
    ):
        pass
    assert lock.read_holder(tmp_path / "lock") == "process 9 on other"


def test_a_lock_that_cannot_be_asked_for_is_no_other_program(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EIO))
    with (
        pytest.raises(UserError, match="the storage or the network failed"),
        hold_lock(RunDirectory(tmp_path)),
    ):
        pass


def refused_together(config: Path, *arguments: list[str]) -> list[str]:
    """What the processes of a run print, each with its own arguments, that refuse it with one
    message and leave at once."""
    command = [*IMPATIENT, "frame_jax.main", "--config", str(config)]
    command += ["--parallel.distributed", "true", "--parallel.num_processes", str(len(arguments))]
    command += ["--parallel.coordinator_address", f"localhost:{free_port()}"]
    ended = side_by_side(
        *([*command, "--parallel.process_id", str(i), *own] for i, own in enumerate(arguments)),
        seconds=200,
    )
    for code, output in ended:
        assert code == 2, output
        assert output.count("error: ") == 1 and "Traceback" not in output, output
    return [output for _, output in ended]


@pytest.mark.processes
def test_processes_with_a_folder_each_end_at_once_and_say_so(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    config = write_config(tmp_path)
    folders = [["--run_directory", str(tmp_path / f"run-{index}")] for index in range(2)]
    for output in refused_together(config, *folders):
        assert re.search(r"process 1 \(on .*\) did not see .* process 0 wrote to", output), output
        assert "one and the same folder" in output
    assert [p.name for p in (tmp_path / "run-0").iterdir()] == []


@pytest.mark.processes
@pytest.mark.parametrize("there", [False, True])
def test_what_only_process_0_reads_all_processes_refuse(tmp_path: Path, there: bool) -> None:
    """A table of scores that is not there, or that has no line for a document of the corpus."""
    write_corpus(tmp_path / "corpus.jsonl")
    path = tmp_path / "scores.parquet"
    if there:
        pq.write_table(pa.table({"doc_id": ["other"], "a": [1.0], "b": [2.0]}), path)
    table = {"path": str(path), "ppl": "a", "pd": "b"}
    config = write_config(tmp_path, scoring={"table": table})
    until = ["--until", "score"]
    first, second = refused_together(config, until, until)
    text = "training documents have no line" if there else "there is no Parquet file at"
    assert text in first and text in second and "process 0, on " in second
    assert (tmp_path / "run").exists() == there


@pytest.mark.slow
def test_a_checkpoint_that_the_storage_does_not_give_is_not_called_damaged(
    tmp_path: Path, capsys
) -> None:
    directory, decoder, _ = make_arm(tmp_path)
    folder = directory.pretrain("frame") / "checkpoints"
    for file in (
        max((folder / "6" / "params").rglob("d/*"), key=lambda path: path.stat().st_size),
        folder / "6" / "params" / "_METADATA",
        folder / "6" / "_CHECKPOINT_METADATA",
    ):
        kept = file.with_name("kept")
        file.rename(kept)
        file.symlink_to(UNREADABLE)
        with pytest.raises(UserError, match=r"Input/output error.*run the same command") as raised:
            checkpoints.load_params(folder, decoder, 6)
        assert "--redo" not in str(raised.value)
        checkpointer = Checkpointer(folder, (3, 6), "fingerprint")
        with pytest.raises(UserError, match=r"checkpoints/6: the storage .*Input/output error"):
            checkpointer.restore_newest(decoder.shapes(), {"unused": np.zeros(1)})
        checkpointer.close()
        assert checkpoints.saved_steps(folder) == [3, 6]
        file.unlink()
        kept.rename(file)
    assert read_description(directory.pretrain("frame")) is not None


def test_files_that_the_storage_does_not_give_are_not_called_damaged(
    tmp_path: Path, monkeypatch
) -> None:
    directory = RunDirectory(tmp_path)
    write_json(directory.scores / "a.json", 1)
    integrity.record_checksums(directory, "score", ["scores"])
    (directory.scores / "a.json").unlink()
    (directory.scores / "a.json").symlink_to(UNREADABLE)
    with pytest.raises(UserError, match=r"scores/a.json: the storage .*Input/output") as raised:
        integrity.verify_checksums(directory, ["score"])
    assert "--redo" not in str(raised.value)
    with pytest.raises(OSError, match="Input/output error") as unexpected:
        read_json(directory.scores / "a.json")
    assert "the storage or the network failed" in str(find_user_error(unexpected.value))

    path = directory.tokens / "part-00000-of-00001.arrayrecord"
    with write_tokens(path) as writer:
        writer.append(range(9))
    reader = TokenReader(path)
    words = f"{os.strerror(errno.EIO)}; reading {path}"

    class Refusing:
        def num_records(self) -> int:
            return 1

        def read(self, _: object) -> None:
            raise RuntimeError(words)

    monkeypatch.setattr(reader, "_reader", Refusing())
    with pytest.raises(UserError, match="the storage or the network failed") as refused:
        reader.read([0])
    assert "rm " not in str(refused.value) and "--redo" not in str(refused.value)


def test_what_is_missing_is_still_said_to_be(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    write_json(directory.scores / "a.json", 1)
    integrity.record_checksums(directory, "score", ["scores"])
    shutil.rmtree(directory.scores)
    with pytest.raises(UserError, match="is missing"):
        integrity.verify_checksums(directory, ["score"])
