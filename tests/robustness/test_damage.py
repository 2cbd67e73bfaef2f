"""Files that are cut short, changed or gone are noticed before they are used, and named."""

import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax import checkpoints
from frame_jax.errors import UserError
from frame_jax.records import TokenReader, write_tokens
from frame_jax.run import integrity
from frame_jax.run.directory import RunDirectory
from frame_jax.training.trainer import train
from frame_jax.training.training_job import TrainingJob
from tests.training.rows import make_job
from tests.training.test_trainer import assert_same, final_params, metrics


def largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (cut, lambda step: largest(step / "params")),
        (flip, lambda step: largest(step / "params")),
        (flip, lambda step: largest(step / "optimizer")),
        (Path.unlink, lambda step: largest(step / "optimizer")),
        (cut, lambda step: step / "_CHECKPOINT_METADATA"),
    ],
    ids=["cut", "bit in params", "bit in optimizer", "missing", "metadata"],
)
def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(
    damage: Callable, file: Callable, trained: TrainingJob, tmp_path: Path, capsys
) -> None:
    shutil.copytree(trained.folder.parent, tmp_path, dirs_exist_ok=True)
    job = make_job(tmp_path)
    folder = job.folder / "checkpoints"
    newest = max(checkpoints.saved_steps(folder))
    damage(file(folder / str(newest)))
    train(job)
    shown = capsys.readouterr().err
    assert f"warning: {folder / str(newest)} is damaged" in shown
    assert (job.folder / "damaged" / str(newest)).is_dir()
    assert_same(final_params(trained), final_params(job))
    assert [record["step"] for record in metrics(job)] == list(range(6))


def test_when_no_checkpoint_can_be_read_nothing_is_thrown_away(
    trained: TrainingJob, tmp_path: Path
) -> None:
    shutil.copytree(trained.folder.parent, tmp_path, dirs_exist_ok=True)
    job = make_job(tmp_path)
    folder = job.folder / "checkpoints"
    steps = checkpoints.saved_steps(folder)
    for step in steps:
        cut(largest(folder / str(step) / "params"))
    with pytest.raises(UserError, match=r"(?s)none of the checkpoints .*--redo "):
        train(job)
    assert checkpoints.saved_steps(folder) == steps and not (job.folder / "damaged").exists()


def test_weights_that_changed_on_disk_are_not_scored_with(
    trained: TrainingJob, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(trained.folder / "checkpoints", folder)
    flip(largest(folder / "6" / "params"))
    with pytest.raises(UserError, match=r"cannot be read .*--redo"):
        checkpoints.load_params(folder, trained.decoder, 6)


def test_another_models_weights_are_refused(trained: TrainingJob) -> None:
    other = checkpoints.Decoder(trained.decoder.config, 256, "float32")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoints.load_params(trained.folder / "checkpoints", other, 6)


def test_digests_see_every_bit_and_no_sharding(use_devices) -> None:
    use_devices(4)
    values = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    tree = {"a": values, "b": np.float32(3)}
    mesh = jax.make_mesh((2, 2), ("x", "y"))
    spread = jax.device_put(
        values, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", "y"))
    )
    expected = int(checkpoints.array_digest(tree, np))
    assert int(checkpoints.tree_digests({"t": {"a": spread, "b": jax.numpy.float32(3)}})["t"]) == (
        expected
    )
    for place in ((0, 0), (7, 5), (3, 2)):
        changed = values.copy()
        changed.view(np.uint32)[place] ^= 1 << 31
        assert int(checkpoints.array_digest(tree | {"a": changed}, np)) != expected
    assert int(checkpoints.array_digest(tree | {"a": values[::-1]}, np)) != expected


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Tokens, scores and an assignment, with their checksums."""
    directory = RunDirectory(tmp_path)
    with write_tokens(directory.tokens / "part-00000-of-00001.arrayrecord") as writer:
        for _ in range(300):
            writer.append(np.arange(500))
    table = pa.table({"doc_id": [f"d{i}" for i in range(300)], "row": range(300)})
    for folder in (directory.tokens, directory.scores):
        folder.mkdir(exist_ok=True)
        pq.write_table(table, folder / "part-00000-of-00001.parquet")
    directory.quadrants.mkdir()
    duckdb.sql(f"COPY (SELECT 1 AS x) TO '{directory.assignment}' (FORMAT parquet)")
    for unit, output in (("tokenize", "tokens"), ("score", "scores"), ("partition", "quadrants")):
        integrity.record_checksums(directory, unit, [output])
    return directory


@pytest.mark.parametrize(
    ("damage", "file", "remedy"),
    [
        (flip, "scores/part-00000-of-00001.parquet", r"rm .*scores/part-00000-of-00001.\* .*score"),
        (cut, "tokens/part-00000-of-00001.arrayrecord", r"rm .*/tokens/part-.* .*/tokenize.json"),
        (Path.unlink, "tokens/part-00000-of-00001.parquet", "is missing.*tokenize.json"),
        (flip, "quadrants/assignment.parquet", "--redo partition"),
    ],
)
def test_damaged_files_of_a_phase_are_named(
    damage: Callable, file: str, remedy: str, run: RunDirectory
) -> None:
    units = ["partition", "score", "tokenize"]
    integrity.verify_checksums(run, units)
    damage(run.root / file)
    with pytest.raises(UserError, match=f"{file} .*{remedy}"):
        integrity.verify_checksums(run, units)


def test_a_changed_bit_in_a_token_file_is_found_when_it_is_read(run: RunDirectory) -> None:
    path = run.tokens / "part-00000-of-00001.arrayrecord"
    with path.open("r+b") as file:
        file.seek(70_000)
        byte = file.read(1)
        file.seek(70_000)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(UserError, match=r"is damaged .*rm .*/tokens/part-.*/tokenize.json"):
        TokenReader(path).read(range(300))
