"""Checkpoints in a bucket keep their promises: whole or not there, the newest good one is found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import jax
import numpy as np
import pytest

from frame_jax.checkpoints import saved_steps
from frame_jax.errors import UserError
from frame_jax.run import bucket, checkpoint_copies, markers, phases
from frame_jax.run.bucket import Bucket
from frame_jax.run.directory import RunDirectory
from frame_jax.training.checkpointer import Checkpointer
from tests.run.test_phases import complete, config
from tests.s3_proxy import failing, serve

REPOSITORY = Path(__file__).parents[2]
URL = "s3://bucket/run/pretrain/frame/checkpoints"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch, serve(patch) as found:
        yield found


@pytest.fixture
def folder(port: int, tmp_path: Path) -> Path:
    """The checkpoints of an arm whose copies go to an empty place in the bucket."""
    Bucket(URL).clear()
    path = tmp_path / "pretrain" / "frame" / "checkpoints"
    path.parent.mkdir(parents=True)
    bucket.pointer_file(path.parent).write_text(f"{URL}\n")
    return path


def state(step: int) -> tuple[Any, Any]:
    weights = np.random.default_rng(step).normal(size=(64, 32)).astype(np.float32)
    return {"w": weights}, {"m": weights * 2}


def order(step: int) -> dict[str, str]:
    return {"order_digest": f"of {step}"}


def save(folder: Path, *steps: int, kept: tuple[int, ...] = (2,)) -> None:
    checkpointer = Checkpointer(folder, kept, "fingerprint")
    for step in steps:
        checkpointer.save(step, *state(step), order(step))
    checkpointer.close()


def restored(folder: Path) -> int | None:
    """The step that training would go on from; its arrays and its order are what was saved."""
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), state(0)
    )
    checkpointer = Checkpointer(folder, (2,), "fingerprint")
    try:
        found = checkpointer.restore_newest(*like)
    finally:
        checkpointer.close()
    if found is None:
        return None
    step, params, optimizer, noted = found
    assert noted == order(step)
    for saved, given in zip(state(step), (params, optimizer), strict=True):
        jax.tree.map(np.testing.assert_array_equal, saved, given)
    return step


def local_steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def objects(url: str = URL) -> list[str]:
    return fsspec.filesystem("s3", skip_instance_cache=True).find(url)


@pytest.mark.slow
def test_kept_steps_are_in_the_bucket_and_the_newest_here(folder: Path) -> None:
    save(folder, 1, 2, 3, 4, 5)
    assert Bucket(URL).steps() == [2, 4, 5] and local_steps(folder) == [4, 5]
    assert saved_steps(folder) == [2, 4, 5]
    assert not any("/1/" in name or "/3/" in name for name in objects())
    with checkpoint_copies.local_checkpoint_folder(folder, 2) as place:
        assert place != folder and local_steps(place) == [2]
    assert not place.exists() and local_steps(folder) == [4, 5]
    assert restored(folder) == 5


@pytest.mark.slow
def test_a_lost_disk_costs_nothing(folder: Path) -> None:
    save(folder, 1, 2, 3)
    shutil.rmtree(folder)
    assert restored(folder) == 3 and local_steps(folder) == [3]
    assert Bucket(URL).steps() == [2, 3]


def largest(step: int) -> str:
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    return max((n for n in objects() if f"/{step}/" in n), key=lambda name: files.size(name))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_a_damaged_copy_is_set_aside_and_the_one_before_found(
    damage: str, folder: Path, capsys
) -> None:
    save(folder, 2, 3)
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    name = largest(3)
    content = bytearray(files.cat_file(name))
    content[len(content) // 2] ^= 1
    if damage == "gone":
        files.rm_file(name)
    else:
        files.pipe_file(name, bytes(content) if damage == "bit" else bytes(content[:9]))
    shutil.rmtree(folder)
    assert restored(folder) == 2
    assert f"warning: {folder / '3'} is damaged" in capsys.readouterr().err
    assert Bucket(URL).steps() == [2]
    assert any(name.endswith("/3/damaged.json") for name in objects())  # nothing is thrown away
    assert restored(folder) == 2
    assert any(name.endswith("/3/damaged.json") for name in objects())


KILLED = """
import sys
from pathlib import Path
from tests.run.test_bucket import order, state
from frame_jax.training.checkpointer import Checkpointer
checkpointer = Checkpointer(Path(sys.argv[1]), (2,), "fingerprint")
for step in range(1, 200):
    checkpointer.save(step, *state(step), order(step))
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_from_what_is_whole(folder: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    with subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        for line in program.stdout:
            if int(line) == 5:
                break
        program.kill()
    shutil.rmtree(folder)  # and the machine is lost with it
    step = restored(folder)
    assert step is not None and step >= 3
    assert 2 in Bucket(URL).steps() and step == max(Bucket(URL).steps())
    left = {name.split("/checkpoints/")[1].split("/")[0] for name in objects()}
    assert left == {str(found) for found in Bucket(URL).steps()}  # no half of a copy stays


@pytest.mark.slow
def test_a_server_that_fails_now_and_then_costs_nothing(
    folder: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frame_jax.retries.RETRY_SECONDS", (0.01,) * 6)
    with failing(monkeypatch, port, every=4) as server:
        save(folder, 1, 2, 3)
        shutil.rmtree(folder)
        assert restored(folder) == 3
        assert server.failures > 10
    assert Bucket(URL).steps() == [2, 3]


@pytest.mark.slow
def test_a_server_that_only_fails_is_named_and_nothing_is_called_damaged(
    folder: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frame_jax.retries.RETRY_SECONDS", (0.01,))
    save(folder, 2, 3)
    shutil.rmtree(folder)
    with failing(monkeypatch, port, every=1, most=10_000):
        with pytest.raises(UserError, match=rf"checkpoint_root: {URL}.*run the same") as raised:
            restored(folder)
        assert "--redo" not in str(raised.value)
    assert restored(folder) == 3


def settle(root: Path, url: str | None, *, begun: bool = False) -> RunDirectory:
    directory, run = RunDirectory(root), config()
    units = [unit for unit in phases.list_phase_steps(run) if unit.name == "pretrain-frame"]
    directory.pretrain("frame").mkdir(parents=True, exist_ok=True)
    bucket.record_buckets(directory, units, url)
    if begun:
        save(directory.pretrain("frame") / "checkpoints", 2)
    return directory


@pytest.mark.slow
def test_a_run_that_has_begun_stays_where_it_is(port: int, tmp_path: Path) -> None:
    directory = settle(tmp_path, "s3://bucket/one/", begun=True)
    where = bucket.pointer_file(directory.pretrain("frame"))
    assert where.read_text() == "s3://bucket/one/pretrain/frame/checkpoints\n"
    for other in ("s3://bucket/two", None):
        with pytest.raises(UserError, match=r"has begun.*steps 2 in s3://bucket/one/pretrain"):
            settle(tmp_path, other)
    settle(tmp_path, "s3://bucket/one")
    Bucket("s3://bucket/one/pretrain/frame/checkpoints").clear()
    settle(tmp_path, None)
    assert not where.exists()


@pytest.mark.slow
def test_redo_removes_the_copies_too(port: int, tmp_path: Path) -> None:
    directory = settle(tmp_path, "s3://bucket/three", begun=True)
    complete(directory, config())
    url = "s3://bucket/three/pretrain/frame/checkpoints"
    assert Bucket(url).steps() == [2]
    markers.remove_outputs(directory, phases.list_phase_steps(config()), "partition")
    assert objects(url) == []


def test_a_bucket_that_is_not_there_is_refused_before_training(port: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint_root: s3://nowhere/run/pretrain/frame/.*"):
        settle(tmp_path, "s3://nowhere/run")
    assert not bucket.pointer_file(tmp_path / "pretrain" / "frame").exists()


@pytest.mark.parametrize("root", ["/mnt/x", "az://b/x", "s3://", "~/x"])
def test_what_is_no_bucket_is_refused(root: str) -> None:
    with pytest.raises(UserError, match="checkpoint_root must be gs://BUCKET"):
        config(f"--checkpoint_root={root}")


def test_where_checkpoints_go_changes_no_fingerprint() -> None:
    plain, elsewhere = config(), config("--checkpoint_root=s3://bucket/run")
    expected = [
        markers.expected_markers(run, phases.list_phase_steps(run), "files")
        for run in (plain, elsewhere)
    ]
    assert expected[0] == expected[1]
