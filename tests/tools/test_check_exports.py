"""An export is what a real client reads, and the comparison would see it if it were not."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from frame_jax.export.order.shards import read_rows
from frame_jax.export.order.trial_order import Trainer, make_trial_order
from tests.export.order.test_order import BATCH, CURRICULA, LENGTH, QUADRANTS, make_run

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENTS = REPOSITORY / ".venv" / "clients"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location(
        "check_exports", REPOSITORY / "tools/check_exports.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their annotations up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("clients") / "run")


@pytest.mark.parametrize("curriculum", ["frame", "twice"])
def test_mosaicml_streaming_yields_the_run_s_rows(tool, run, curriculum) -> None:
    if not (ENVIRONMENTS / "mosaicml" / "installed").exists():
        pytest.skip(
            "MosaicML streaming is not in .venv/clients; tools/check_exports.py installs it"
        )
    good, line = tool.check("mosaicml", run[1], curriculum, ENVIRONMENTS)
    rows = make_trial_order(*run, curriculum).schedule.rows
    assert good and f" accepted; {rows} of {rows} rows in their place" in line


def rows_of(tool, run, plan) -> np.ndarray:
    names = plan.schedule.quadrants
    parts = [tool.list_parts(run[1].quadrants / name, ".arrayrecord") for name in names]
    return read_rows(tool.QuadrantRows(parts), plan, 0, plan.schedule.rows)


def test_other_rows_are_seen(tool, run) -> None:
    plan = make_trial_order(*run, "frame")
    trainer = Trainer(BATCH, LENGTH, "", "")
    rows = rows_of(tool, run, plan)
    whole = len(rows) // BATCH * BATCH
    assert tool.compare_rows(rows[:whole], run[1], plan, trainer)[0]
    assert not tool.compare_rows(rows[: whole - BATCH], run[1], plan, trainer)[0]
    rows[[0, 1]] = rows[[1, 0]]
    assert not tool.compare_rows(rows[:whole], run[1], plan, trainer)[0]


@pytest.mark.parametrize("curriculum", list(CURRICULA))
def test_another_order_of_sequences_is_seen(tool, run, curriculum, monkeypatch) -> None:
    """Sequences of random tokens in the run's order and in none; a fifth is read twice."""
    plan = make_trial_order(*run, curriculum)
    steps = 200
    trainer = Trainer(plan.schedule.rows * LENGTH // (20 * steps), 20, "", "")
    rng = np.random.default_rng(0)
    needed = plan.schedule.rows * LENGTH
    texts = rng.integers(0, 1000, (len(QUADRANTS), needed))
    places = np.concatenate([np.append(text, -2) for text in texts])
    owners = np.repeat(np.arange(len(QUADRANTS)), needed + 1)
    monkeypatch.setattr(tool, "known_places", lambda run, quadrants: (places, owners, owners >= 0))
    taken, sequences = [0] * len(QUADRANTS), []
    stages = tool.promised(plan, trainer, True)
    for _, first, stop, shares in stages:
        count = (stop - first) * trainer.batch_size
        ends = np.round(np.cumsum([0, *shares]) * count).astype(int)
        for quadrant in rng.permutation(np.repeat(np.arange(len(QUADRANTS)), np.diff(ends))):
            sequences.append(texts[quadrant, taken[quadrant] : taken[quadrant] + 20])
            taken[quadrant] += 20
    found = np.stack(sequences)
    good, text = tool.compare_tokens(found, run[1], plan, trainer, True)
    assert good and " 0.00% read twice" in text, text
    fifth = found.copy()
    fifth[len(found) // 10 * 9 :] = fifth[: len(found) - len(found) // 10 * 9]
    assert " 0.00% read twice" not in tool.compare_tokens(fifth, run[1], plan, trainer, True)[1]
    if len(stages) > 1:
        shuffled = rng.permutation(found)
        assert not tool.compare_tokens(shuffled, run[1], plan, trainer, True)[0]
