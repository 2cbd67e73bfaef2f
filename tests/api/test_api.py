"""The public API: its examples, and agreement with what the phases of a run compute."""

from __future__ import annotations

import doctest
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import frame_jax
from frame_jax.config.curriculum import CurriculumConfig
from frame_jax.config.quadrants import AxesConfig, PartitionConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.corpus.tokenizer_training import train_tokenizer
from frame_jax.curriculum.presets import expand_curriculum
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.curriculum.stages import resolve_curriculum
from frame_jax.quadrants.partition import write_assignment
from frame_jax.run.directory import read_json
from tests.api.conftest import TEXTS, make_models
from tests.programs import REPOSITORY
from tests.quadrants.corpus import make_corpus, write
from tests.scoring.numpy_decoder import document_nll


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in frame_jax.__all__ if n[0].islower()])
def test_every_function_has_an_example_that_works(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(frame_jax, name), name, globs={})
    assert example.examples
    report: list[str] = []
    doctest.DocTestRunner().run(example, out=report.append)
    assert not report, "".join(report)


def test_importing_the_package_loads_neither_jax_nor_numpy() -> None:
    code = (
        "import sys, frame_jax; assert frame_jax.__version__; dir(frame_jax)\n"
        "assert not {'jax', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "frame_jax.curriculum_order({'Q1': 1}, 'random')\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_what_is_no_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="load_model"):
        _ = frame_jax.load_model


def test_a_table_is_partitioned_as_the_partition_phase_does(tmp_path: Path) -> None:
    """Ties included, and documents that are held out or have no tokens."""
    corpus = make_corpus(900, levels=8)
    corpus.tokens[:5] = 0
    directory = write(corpus, tmp_path)
    write_assignment(PartitionConfig(), ScoringConfig(), directory)
    assigned = pq.read_table(directory.assignment)
    lines = assigned.to_pylist()
    np.random.default_rng(1).shuffle(lines)
    lines[3:3] = [{**lines[0], "doc_id": "another", "split": "reference", "quadrant": None}]
    expected = [line.pop("quadrant") for line in lines]
    found = frame_jax.partition_table(pa.Table.from_pylist(lines))
    assert found.quadrants.tolist() == expected
    assert {None, "Q1", "Q2", "Q3", "Q4"} == set(found.quadrants)
    phase = read_json(directory.partition)

    def begins(groups: list) -> list:
        return [[b["doc_id"] for b in g["thresholds"]["ppl"]] for g in groups]

    assert begins(found.groups) == begins(phase["groups"])
    assert [g["domain"] for g in found.groups] == [g["domain"] for g in phase["groups"]]


GOOD = {"ppl": [1.0, 2.0], "pd": [0.1, 0.2], "tokens": [3, 4]}


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ({"ppl": [1.0], "tokens": [1]}, {}, "no column 'pd'"),
        (GOOD | {"ppl": ["high", "low"]}, {}, "column 'ppl' does not hold double"),
        (GOOD | {"doc_id": ["a", "a"]}, {}, "an id of its own"),
        (GOOD, {"group_by": ["domain"]}, "no column 'domain'"),
        (GOOD, {"group_by": ["publisher"]}, "choose of domain"),
        (GOOD | {"ppl": [1.0, 1.0]}, {"axes": (2, 1)}, "ppl has one value"),
    ],
)
def test_a_table_of_no_use_is_refused(table: dict, options: dict, message: str) -> None:
    with pytest.raises(frame_jax.UserError, match=message):
        frame_jax.partition_table(table, **options)


def test_warnings_of_a_partition_are_given(tmp_path: Path) -> None:
    tied = {"ppl": [1.0] * 6 + [2.0, 3.0], "pd": np.arange(8), "tokens": [1] * 8}
    (warning,) = frame_jax.partition_table(tied).warnings
    assert "exactly a threshold's" in warning


@pytest.mark.slow
def test_scores_are_the_models_own_and_those_of_a_run(folder: Path) -> None:
    own = frame_jax.load_models(folder / "small", folder / "large", context=64)
    run = frame_jax.load_run_models(folder / "runs/mine")
    assert own.compute_dtype in ("bfloat16", "float32") and run.compute_dtype == "float32"
    exact = frame_jax.load_models(
        folder / "small", folder / "large", context=64, compute_dtype="float32"
    )
    scores, of_run = (frame_jax.score_texts(m, iter(TEXTS), overlap=8) for m in (exact, run))
    for name in ("predicted_tokens", "nll_weak", "nll_strong"):
        np.testing.assert_array_equal(getattr(scores, name), getattr(of_run, name))

    ids = exact._tokenizer.encode_batch(TEXTS)
    assert len(ids[2]) > 2 * 64 and scores.predicted_tokens.tolist() == [len(i) for i in ids]
    nlls = (scores.nll_weak, scores.nll_strong)
    for (decoder, params), nll in zip(make_models().values(), nlls, strict=True):
        bos = exact._tokenizer.bos_id
        expected = [document_nll(decoder.config, params, i, bos, 64, 8) for i in ids]
        np.testing.assert_allclose(nll, expected, rtol=1e-5)
    chosen = scores.predicted_tokens > 0
    weak, strong = (np.exp(nll[chosen] / scores.predicted_tokens[chosen]) for nll in nlls)
    np.testing.assert_allclose(scores.ppl[chosen], strong)
    np.testing.assert_allclose(scores.pd[chosen], (weak - strong) / weak, rtol=1e-6)
    assert np.isnan(scores.ppl[1]) and np.isnan(scores.pd[1])


def test_models_that_are_no_pair_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(frame_jax.UserError, match=r"config.yaml"):
        frame_jax.load_run_models(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(folder / "large", other)
    tokenizer = train_tokenizer(["entirely different words of another kind\n" * 9], 290)
    tokenizer.save(str(other / "tokenizer.json"))
    with pytest.raises(frame_jax.UserError, match="share one tokenizer"):
        frame_jax.load_models(folder / "small", other)
    models = frame_jax.load_models(folder / "small", folder / "large", context=8)
    with pytest.raises(frame_jax.UserError, match="overlap"):
        frame_jax.score_texts(models, ["text"], overlap=8)


ROWS = {"Q1": 700, "Q2": 600, "Q3": 5000, "Q4": 500}


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["frame", "random_again", "folded"])
def test_an_order_is_the_one_that_training_reads(preset: str) -> None:
    expanded = expand_curriculum(CurriculumConfig(preset=preset), AxesConfig())
    schedule = resolve_curriculum(expanded, ROWS, batch_size=16, sequence_length=64, steps=400)
    selection = SelectionMap(schedule, 7, expanded.shuffle)
    options = {"batch_size": 16, "sequence_length": 64, "steps": 400, "seed": 7}
    shuffled = dict(reversed(ROWS.items()))  # quadrants come in their own order
    order = list(frame_jax.curriculum_order(shuffled, preset, **options))
    assert len(order) == 6400 == len(set(order))
    assert order == [(f"Q{q + 1}", row) for q, row in map(selection.__getitem__, range(6400))]
    assert list(frame_jax.curriculum_order(ROWS, preset, **options, start=4100)) == order[4100:]


def test_stages_are_those_of_a_config() -> None:
    stages = [{"weights": {"Q2": 1}, "fraction": 0.2}, {"weights": {"Q1": 1, "Q2": 1}}]
    order = frame_jax.curriculum_order({"Q1": 50, "Q2": 50}, stages, transition="hard", epochs=2)
    names = [quadrant for quadrant, _ in order]
    assert names[:20] == names[100:120] == ["Q2"] * 20
    assert len(names) == 200 and names.count("Q1") == 100


@pytest.mark.parametrize(
    ("rows", "order", "message"),
    [
        ({"Q1": 3}, "frames", "no preset 'frames'"),
        ({"P1D1": 3}, "frame", "no quadrant P1D1"),
        ({"Q1": 3}, [{"weights": {"Q9": 1}}], "no quadrant 'Q9'"),
    ],
)
def test_an_order_that_cannot_be_is_refused_at_once(
    rows: dict, order: object, message: str
) -> None:
    with pytest.raises(frame_jax.UserError, match=message):
        frame_jax.curriculum_order(rows, order)
