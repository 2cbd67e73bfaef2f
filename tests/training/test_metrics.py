"""What a training run says of itself, to files and trackers; interruptions do not show in it."""

import dataclasses
import json
import re
import shutil
import struct
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from frame_jax.config.training import TrainingConfig
from frame_jax.errors import UserError
from frame_jax.main import main
from frame_jax.parallel import processes
from frame_jax.training.metrics import MetricsLog, import_function
from frame_jax.training.trainer import train
from frame_jax.training.training_job import TrainingJob
from tests.integration.small_run import write_config
from tests.training.rows import make_job, write_rows

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


class Notebook:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.closed = 0

    def write(self, record: dict[str, Any]) -> None:
        self.steps.append(record["step"])

    def close(self) -> None:
        self.closed += 1


def points(folder: Path) -> dict[str, dict[int, float]]:
    """{tag: {step: value}} of all event files of a folder, as TensorBoard shows them.

    Event files are TFRecords: length (8 bytes), its checksum (4), a protocol buffer, its checksum.
    A session that starts at a step takes back the points of that step and later ones.
    """
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.HasField("session_log") and event.step:
                for steps in found.values():
                    for step in [step for step in steps if step >= event.step]:
                        del steps[step]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def attempt(folder: Path, first_step: int, records: list[dict], notebook: Notebook | None) -> None:
    """What the trainer does from a checkpoint of `first_step` on, until it dies or ends."""
    make = None if notebook is None else lambda: notebook
    with MetricsLog(folder, first_step, every=1, phase="test", make_tracker=make) as log:
        for record in records:
            log.write(record)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingJob, Notebook]:
    root = tmp_path_factory.mktemp("rows")
    write_rows(root)
    training = TrainingConfig(batch_size=16, compute_dtype="float32", milestones=2, log_every=1)
    notebook = Notebook()
    job = dataclasses.replace(make_job(root, training=training), make_tracker=lambda: notebook)
    train(job)
    return job, notebook


def documented_keys(section: str) -> list[str]:
    """The keys in the table of a section of docs/metrics.md."""
    text = DOCS.read_text("utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)


def test_the_documented_keys_are_those_of_the_file(trained: tuple[TrainingJob, Notebook]) -> None:
    documented = documented_keys("metrics.jsonl")
    lines = (trained[0].folder / "metrics.jsonl").read_text().splitlines()
    for line in lines:
        assert sorted(json.loads(line)) == sorted(documented)


def test_tensorboard_groups_by_phase_and_stage(trained: tuple[TrainingJob, Notebook]) -> None:
    job, _ = trained  # named `test`, which is its phase
    found = points(job.folder / "tensorboard")
    records = [json.loads(line) for line in (job.folder / "metrics.jsonl").open()]
    losses = {record["step"]: record["loss"] for record in records}
    assert found["test/loss"] == pytest.approx(losses, rel=1e-6)
    for stage in ("Q3", "Q4", "Q1", "Q2"):
        inside = {r["step"]: r["loss"] for r in records if r["stage"] == stage}
        assert inside and found[f"test.{stage}/loss"] == pytest.approx(inside, rel=1e-6)
        shares = {record["step"]: record["mixture"][stage] for record in records}
        assert found[f"test.mixture/{stage}"] == pytest.approx(shares, rel=1e-6)


def test_interruptions_send_no_step_twice_and_take_back_points(
    trained: tuple[TrainingJob, Notebook], tmp_path: Path
) -> None:
    job, notebook = trained
    steps = list(range(job.steps))
    assert notebook.steps == steps and notebook.closed == 1
    records = [json.loads(line) for line in (job.folder / "metrics.jsonl").open()]
    notebook = Notebook()
    # Dies after step 4, goes back to 2, dies after step 3, goes back to 2 again and ends.
    for first, stop in ((0, 5), (2, 4), (2, job.steps)):
        attempt(tmp_path, first, records[first:stop], notebook)
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == steps[:stop]
    assert notebook.steps == steps and notebook.closed == 3
    assert sorted(points(tmp_path / "tensorboard")["test/loss"]) == steps


def test_a_tracker_that_comes_later_is_sent_what_follows(
    trained: tuple[TrainingJob, Notebook], tmp_path: Path
) -> None:
    records = [json.loads(line) for line in (trained[0].folder / "metrics.jsonl").open()]
    notebook = Notebook()
    attempt(tmp_path, 0, records[:5], None)
    attempt(tmp_path, 3, records[3:], notebook)
    assert notebook.steps == [3, 4, 5]


@pytest.mark.parametrize("error", [ConnectionError("no route"), SystemExit(3)], ids=repr)
@pytest.mark.parametrize("method", ["make", "write", "close"])
def test_a_tracker_that_fails_stops_nothing(
    tmp_path: Path, capsys: Any, method: str, error: BaseException
) -> None:
    def fail(*arguments: object) -> None:
        calls.append(arguments)
        raise error

    calls: list[tuple[object, ...]] = []
    notebook = Notebook()
    if method != "make":
        setattr(notebook, method, fail)
    make = fail if method == "make" else lambda: notebook
    with MetricsLog(tmp_path, 0, every=1, phase="test", make_tracker=make) as log:
        for step in range(3):
            log.write({"step": step, "stage": "Q1", "mixture": {}})
    assert len(calls) == 1
    assert f"the tracker has failed ({type(error).__name__}: {error})" in capsys.readouterr().err
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("tracker", [None, object()])
def test_what_is_no_tracker_is_said_once(tmp_path: Path, capsys: Any, tracker: object) -> None:
    with MetricsLog(tmp_path, 0, every=1, phase="test", make_tracker=lambda: tracker) as log:
        for step in range(3):
            log.write({"step": step, "stage": "Q1", "mixture": {}})
    assert capsys.readouterr().err.count("the tracker has failed (AttributeError") == 1


def test_a_tracker_may_change_what_it_is_sent(tmp_path: Path) -> None:
    class Greedy(Notebook):
        def write(self, record: dict[str, Any]) -> None:
            del record["loss"]
            record["mixture"].clear()

    record = {"step": 0, "loss": 1.0, "stage": "Q1", "mixture": {"Q1": 1.0}}
    attempt(tmp_path, 0, [record], Greedy())
    assert record["loss"] == 1.0 and record["mixture"] == {"Q1": 1.0}


def test_an_interrupt_inside_a_tracker_is_the_user_s(tmp_path: Path) -> None:
    def interrupted() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        MetricsLog(tmp_path, 0, every=1, phase="test", make_tracker=interrupted)


def test_only_the_first_process_writes(
    trained: tuple[TrainingJob, Notebook], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, notebook = trained
    shutil.copytree(job.folder / "checkpoints", tmp_path / "checkpoints")
    monkeypatch.setattr(processes, "is_first", lambda: False)
    train(dataclasses.replace(job, folder=tmp_path))  # from its last step: nothing is compiled
    assert notebook.closed == 1  # by the run before
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_the_example_of_the_documentation_follows_a_run(
    trained: tuple[TrainingJob, Notebook], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`wandb` is a stand-in here: it is no dependency."""
    (source,) = re.findall(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    logged: list[tuple[int, dict[str, Any]]] = []
    opened: list[dict[str, Any]] = []
    run = types.SimpleNamespace(
        log=lambda values, step: logged.append((step, values)),
        finish=lambda: logged.append((-1, {})),
    )
    wandb = types.SimpleNamespace(init=lambda **settings: opened.append(settings) or run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    module = types.ModuleType("my_tracker")
    exec(source, module.__dict__)
    monkeypatch.setitem(sys.modules, "my_tracker", module)
    folder = trained[0].folder
    follow = import_function("my_tracker:Run")
    for _ in range(2):
        tracker = follow("pretrain-frame", folder, {"seed": 1})
    record = json.loads((folder / "metrics.jsonl").read_text().splitlines()[2])
    tracker.write(record)
    tracker.close()
    assert opened[0] == opened[1] and opened[0]["config"] == {"seed": 1}
    (step, values), (end, _) = logged
    assert step == 2 and end == -1
    assert values["loss"] == record["loss"]
    assert values["mixture/Q3"] == record["mixture"]["Q3"]


@pytest.mark.slow
def test_a_tracker_that_is_not_there_is_refused_before_anything(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"text": "x"}\n' * 9)
    config = str(write_config(tmp_path))
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    for path, message in (
        ("leaves:make", "leaves:make cannot be imported (SystemExit: 3)"),
        ("no_such_module:make", "No module named 'no_such_module'"),
        ("json:make", "has no attribute 'make'"),
        ("json", "must be module:function"),
    ):
        assert main(["--config", config, "--tracker", path]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="cannot be imported"):
        import_function("json:make")
