import functools
import itertools
from pathlib import Path

import pytest

from frame_jax.config.file import parse
from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError
from frame_jax.run import directory as run_directory
from frame_jax.run import markers, phases
from frame_jax.run.directory import RunDirectory, read_json, write_json


def config(*overrides: str) -> RunConfig:
    sources = '--corpus.sources=[{"kind": "python_library"}]'
    return parse(["--run_directory=r", sources, *overrides])[0]


def complete(directory: RunDirectory, run: RunConfig) -> None:
    table = phases.list_phase_steps(run)
    for name, expected in markers.expected_markers(run, table, "files").items():
        write_json(
            directory.marker(name),
            {
                "complete": True,
                "fingerprint": expected.fingerprint,
                "settings": expected.settings,
                "inputs": expected.inputs,
            },
        )


def stale(directory: RunDirectory, run: RunConfig, files: str = "files") -> dict[str, str]:
    """Units that are refused under `run`, with the messages."""
    table = phases.list_phase_steps(run)
    refused = {}
    for unit in table:
        try:
            markers.check_current(
                directory, unit, markers.expected_markers(run, table, files)[unit.name]
            )
        except UserError as error:
            refused[unit.name] = str(error)
    return refused


def test_every_unit_reads_only_from_earlier_units() -> None:
    seen: set[str] = set()
    for unit in phases.list_phase_steps(config()):
        assert set(unit.inputs) <= seen
        seen.add(unit.name)
        assert callable(phases.load_function(unit))
    assert [*dict.fromkeys(unit.phase for unit in phases.list_phase_steps(config()))] == [
        *phases.PHASES
    ]


def test_an_unchanged_run_is_current(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    complete(directory, config())
    assert stale(directory, config()) == {}
    # Where and how fast it runs is free to change.
    assert stale(directory, config("--parallel.data=2", "--scoring.per_device_batch_size=3")) == {}


@pytest.mark.slow
def test_a_changed_setting_makes_its_unit_and_all_later_ones_stale(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    complete(directory, config())
    refused = stale(directory, config("--pretrain.training.batch_size=48"))
    assert set(refused) == {
        *("pretrain-frame", "pretrain-random", "evaluate-frame", "evaluate-random")
    }
    message = refused["pretrain-frame"]
    assert "pretrain.training.batch_size: 32 then, 48 now" in message
    assert "--redo pretrain" in message and "--run_directory" in message
    assert "input `pretrain-frame` has changed" in refused["evaluate-frame"]
    everything = {unit.name for unit in phases.list_phase_steps(config())} - {"report"}
    assert set(stale(directory, config("--seed=1"))) == everything


def test_a_setting_that_a_release_adds_is_named_even_where_it_is_null(tmp_path: Path) -> None:
    directory, run = RunDirectory(tmp_path), config()
    complete(directory, run)
    marker = read_json(directory.marker("pretrain-frame"))
    assert marker["settings"].pop("pretrain.training.steps", "missing") is None
    write_json(
        directory.marker("pretrain-frame"), marker | {"fingerprint": "of the release before"}
    )
    message = stale(directory, run)["pretrain-frame"]
    assert "pretrain.training.steps: no such setting then, None now" in message


def test_a_marker_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    write_json(directory.marker("score"), {"complete": True, "begun": 1})
    with pytest.raises(UserError, match=r"score.json is not as this release writes it .*begun"):
        markers.read_marker(directory, "score")


def test_changed_corpus_files_are_noticed(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    complete(directory, config())
    assert "`corpus files` has changed" in stale(directory, config(), "others")["tokenize"]


def test_another_arm_leaves_the_finished_arms_alone(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    complete(directory, config())
    more = config(
        '--curricula={"frame": {"preset": "frame"}, "random": {"preset": "random"}, '
        '"reverse": {"preset": "reverse"}}'
    )
    assert stale(directory, more) == {}
    expected = markers.expected_markers(more, phases.list_phase_steps(more), "files")
    left = [
        u
        for u in phases.list_phase_steps(more)
        if not markers.is_complete(directory, u, expected[u.name])
    ]
    assert [u.name for u in left] == ["pretrain-reverse", "evaluate-reverse", "report"]


def left_of(directory: RunDirectory, run: RunConfig) -> list[str]:
    table = phases.list_phase_steps(run)
    expected = markers.expected_markers(run, table, "files")
    return [u.name for u in table if not markers.is_complete(directory, u, expected[u.name])]


@pytest.mark.slow
def test_another_seed_trains_only_what_is_missing(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    complete(directory, config())  # one seed
    assert stale(directory, config("--seeds=3")) == {}
    more = [f"{what}-{arm}-seed{n}" for what in ("pretrain", "evaluate") for n in (1, 2)
            for arm in ("frame", "random")]  # fmt: skip
    assert left_of(directory, config("--seeds=3")) == [*more, "report"]
    complete(directory, config("--seeds=3"))
    # Whichever way the same seeds are asked for, and in whichever order.
    assert left_of(directory, config("--seeds=[2,0,1]")) == []
    assert left_of(directory, config("--seeds=2")) == ["report"]


def test_a_trials_seed_is_among_its_settings(tmp_path: Path) -> None:
    run = config("--seed=4", "--seeds=[4,7]")
    expected = markers.expected_markers(run, phases.list_phase_steps(run), "files")
    assert expected["pretrain-frame"].settings["seed"] == 4
    assert expected["pretrain-frame-seed7"].settings["seed"] == 7
    assert expected["pretrain-frame"].inputs == expected["pretrain-frame-seed7"].inputs


def test_redo_removes_a_phase_and_what_was_made_from_it(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    complete(directory, config())
    for folder in ("scores", "quadrants", "pretrain/frame"):
        (tmp_path / folder).mkdir(parents=True)
    removed = markers.remove_outputs(directory, phases.list_phase_steps(config()), "partition")
    assert "score" not in removed and "report" in removed and "pretrain-random" in removed
    assert (tmp_path / "scores").exists() and directory.marker("score").exists()
    assert not (tmp_path / "quadrants").exists() and not (tmp_path / "pretrain/frame").exists()
    assert not directory.marker("evaluate-frame").exists()


def test_redo_of_one_arm_keeps_the_other(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    complete(directory, config())
    removed = markers.remove_outputs(directory, phases.list_phase_steps(config()), "pretrain-frame")
    assert set(removed) == {"pretrain-frame", "evaluate-frame", "report"}


def test_a_redo_that_is_killed_leaves_no_outputs_without_the_marker_that_guards_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config()
    table = phases.list_phase_steps(run)

    class KilledError(Exception):
        pass

    for survived in range(6):
        directory = RunDirectory(tmp_path / str(survived))
        complete(directory, run)
        for unit in table:
            for output in unit.outputs:
                (directory.root / output / "part").mkdir(parents=True)
        calls = itertools.count()

        def act(path: Path, do, calls=calls, limit=survived) -> None:
            if next(calls) == limit:
                raise KilledError
            do(path)

        for name in ("remove", "mark_for_removal"):
            do = getattr(run_directory, name)
            monkeypatch.setattr(markers, name, functools.partial(act, do=do))
        with pytest.raises(KilledError):
            markers.remove_outputs(directory, table, "score")
        for unit in table:
            left = [o for o in unit.outputs if (directory.root / o).exists()]
            assert directory.marker(unit.name).exists() or not left
