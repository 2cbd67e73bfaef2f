"""What ends or disturbs training: SIGTERM, numbers that are none, a full disk."""

import errno
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax import checkpoints
from frame_jax.config.training import TrainingConfig
from frame_jax.curriculum import digest
from frame_jax.errors import UserError
from frame_jax.main import main
from frame_jax.records import TokenReader, write_tokens
from frame_jax.run import preemption
from frame_jax.run.directory import atomic_path, write_json
from frame_jax.run.preemption import Preempted
from frame_jax.run.program_exit import find_user_error
from frame_jax.training import trainer
from frame_jax.training.recorder import skip_bad_steps
from frame_jax.training.train_step import TrainState
from frame_jax.training.trainer import train
from frame_jax.training.training_job import TrainingJob
from tests.integration.small_run import write_config, write_corpus
from tests.training.rows import make_job, write_rows
from tests.training.test_trainer import assert_same, final_params, metrics


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_rows(tmp_path)
    return tmp_path


def test_sigterm_saves_and_the_next_start_goes_on_at_the_next_step(
    root: Path, trained: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(root)
    monkeypatch.setattr(preemption, "stop_requested", lambda step: step == 4)
    with pytest.raises(Preempted, match="saved at step 4"):
        train(job)
    assert max(checkpoints.saved_steps(job.folder / "checkpoints")) == 4
    assert [record["step"] for record in metrics(job)] == list(range(4))
    monkeypatch.undo()
    train(job)
    assert [record["step"] for record in metrics(job)] == list(range(6))
    assert_same(final_params(trained), final_params(job))


def not_finite(at: range, kind: float):
    """`make_train_step` whose loss and parameters are `kind` at some steps."""
    make = trainer.make_train_step

    def make_broken(*arguments):
        step = make(*arguments)

        def broken(state, rows):
            new, values = step(state, rows)
            bad = (state.step >= at.start) & (state.step < at.stop)
            params = jax.tree.map(lambda p: jnp.where(bad, kind, p), new.params)
            values |= {"loss": jnp.where(bad, kind, values["loss"])}
            return TrainState(new.step, params, new.optimizer), values

        return broken

    return make_broken


@pytest.mark.slow
def test_a_step_that_is_not_a_number_is_skipped_and_noted(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    job = make_job(root)
    monkeypatch.setattr(trainer, "make_train_step", not_finite(range(2, 4), float("nan")))
    train(job)
    assert [record["step"] for record in metrics(job)] == list(range(6))
    assert [record["loss"] is None for record in metrics(job)] == [i in (2, 3) for i in range(6)]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(final_params(job)))
    noted = [json.loads(line) for line in (job.folder / "bad_steps.jsonl").open()]
    assert [line["step"] for line in noted] == [2, 3]
    assert noted[0]["loss"] == "nan"
    assert "step 2 is not applied" in capsys.readouterr().err
    for step, record in enumerate(metrics(job)):  # the rows of a bad step were read, too
        assert record["order_digest"] == digest.format_digest(read_until(job, step))


def read_until(job: TrainingJob, step: int) -> int:
    """The digest of all rows up to and with those of a step."""
    places = np.arange(min((step + 1) * 16, len(job.selection)))
    quadrants = [TokenReader(parts[0]).read(range(22)) for parts in job.parts.values()]
    rows = np.array(
        [quadrants[quadrant][row] for quadrant, row in map(job.selection.__getitem__, places)]
    )
    return digest.digest_value(
        digest.ordered_row_digests(places, digest.row_digests(rows)).sum(0, dtype=np.uint64)
    )


@pytest.mark.slow
def test_training_stops_after_too_many_and_keeps_the_state_before_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = TrainingConfig(batch_size=16, compute_dtype="float32", milestones=2, max_bad_steps=2)
    job = make_job(root, training=training)
    monkeypatch.setattr(trainer, "make_train_step", not_finite(range(2, 9), float("inf")))
    with pytest.raises(UserError, match=r"[23] steps in a row .*bad_steps.jsonl"):
        train(job)
    folder = job.folder / "checkpoints"
    steps = checkpoints.saved_steps(folder)
    assert 2 in steps and max(steps) in (4, 5)
    before, after = (checkpoints.load_params(folder, job.decoder, step) for step in (2, max(steps)))
    assert_same(before, after)


def test_a_good_step_is_left_as_it_is() -> None:
    def step(state: TrainState, rows: jax.Array):
        params, moments = state.params + rows, {"count": state.optimizer["count"] + 1, "m": rows}
        return TrainState(state.step + 1, params, moments), {
            "loss": rows.sum(),
            "grad_norm": rows.max(),
        }

    state = TrainState(jnp.int32(3), jnp.ones(2), {"count": jnp.int32(3), "m": jnp.zeros(2)})
    good, _ = skip_bad_steps(step)(state, jnp.array([1.0, 2.0]))
    assert good.params.tolist() == [2, 3] and good.optimizer["m"].tolist() == [1, 2]  # type: ignore[attr-defined]
    bad, _ = skip_bad_steps(step)(state, jnp.array([1.0, jnp.inf]))
    assert bad.params.tolist() == [1, 1] and bad.optimizer["m"].tolist() == [0, 0]  # type: ignore[attr-defined]
    assert int(bad.step) == 4 and int(bad.optimizer["count"]) == 4


def test_a_full_disk_is_named_and_finished_parts_stay(
    tmp_path: Path, limit_files: Callable[[int], None]
) -> None:
    limit_files(200_000)
    whole, random = tmp_path / "part-00000-of-00002.arrayrecord", np.random.default_rng(0)
    write_json(tmp_path / "kept.json", 1)
    with write_tokens(whole) as writer:
        writer.append(range(30))

    def tokens() -> None:
        with write_tokens(tmp_path / "part-00001-of-00002.arrayrecord") as writer:
            for _ in range(200):
                writer.append(random.integers(0, 2**31, 1000))

    def table() -> None:
        with atomic_path(tmp_path / "t.parquet") as path:
            pq.write_table(pa.table({"x": random.normal(size=50_000)}), path)

    def text() -> None:
        write_json(tmp_path / "t.json", ["x" * 100] * 2000)

    for write, name in ((tokens, "part-00001"), (table, "t.parquet"), (text, "t.json")):
        with pytest.raises(UserError, match=rf"no room to write .*{name}.* more than [\d,]+ bytes"):
            write()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.json", whole.name]
    assert len(TokenReader(whole)) == 1


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_is_named(
    root: Path, limit_files: Callable[[int], None]
) -> None:
    job = make_job(root)
    limit_files(100_000)
    with pytest.raises(UserError, match=r"no room to write .*checkpoints/\d+: .* [\d,]+ bytes"):
        train(job)


@pytest.mark.slow
def test_a_run_that_ran_out_of_room_goes_on_when_there_is_some(
    tmp_path: Path, limit_files: Callable[[int], None], capsys
) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    with (tmp_path / "corpus.jsonl").open("a", encoding="utf-8") as file:
        words = " ".join(map(str, np.random.default_rng(0).integers(0, 2**40, 100_000)))
        # Record 601 of a file that is dealt out to three parts: the second part, not the first.
        file.write(json.dumps({"id": "small", "text": "small"}) + "\n")
        file.write(json.dumps({"id": "large", "text": words}) + "\n")
    arguments = ["--config", str(write_config(tmp_path)), "--until", "tokenize"]
    limit_files(300_000)
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and shown.count("error: ") == 1
    assert "error: no room to write" in shown and "part-" in shown and " bytes" in shown
    tokens = tmp_path / "run" / "tokens"
    finished = {p: p.stat().st_mtime_ns for p in tokens.glob("part-*.parquet")}
    assert finished and not list((tmp_path / "run").rglob(".tmp-*"))
    limit_files(resource.RLIM_INFINITY)
    assert main(arguments) == 0
    assert len(list(tokens.glob("part-*.arrayrecord"))) == 3
    for path, written in finished.items():
        assert path.stat().st_mtime_ns == written


def test_wrapped_errors_of_the_user_stay_so() -> None:
    try:
        try:
            raise UserError("the cause")
        except UserError as error:
            raise RuntimeError("a library's words") from error
    except RuntimeError as error:
        assert str(find_user_error(error)) == "the cause"
    assert find_user_error(ValueError("a defect")) is None
    try:
        try:
            raise UserError("no room for the metrics")
        finally:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as when a file is closed
    except OSError as error:
        assert str(find_user_error(error)) == "no room for the metrics"
