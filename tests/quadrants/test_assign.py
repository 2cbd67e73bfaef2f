"""Placing documents: agreement with a NumPy account of the rule, balance, and odd documents."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from frame_jax.config.quadrants import AxesConfig, MixtureConfig, PartitionConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.errors import UserError
from frame_jax.quadrants.partition import write_assignment
from frame_jax.run import buckets
from frame_jax.run.directory import RunDirectory, list_parts, read_json
from frame_jax.run.partition_record import read_partition_record
from tests.quadrants.corpus import Corpus, expected_cells, make_corpus, write


def placed(directory: RunDirectory, config: PartitionConfig | None = None, **scoring) -> dict:
    """{doc_id: line of assignment.parquet}."""
    write_assignment(config or PartitionConfig(), ScoringConfig(**scoring), directory)
    return {line["doc_id"]: line for line in pq.read_table(directory.assignment).to_pylist()}


def only(corpus: Corpus, chosen: np.ndarray) -> Corpus:
    return Corpus(**{f.name: getattr(corpus, f.name)[chosen] for f in fields(Corpus)})


CONFIGS = {
    "default": PartitionConfig(),
    "independent": PartitionConfig(mode="independent"),
    "global": PartitionConfig(group_by=[]),
    "by source": PartitionConfig(group_by=["source"]),
    "grid": PartitionConfig(axes=AxesConfig(ppl=3, pd=4)),
    "independent grid": PartitionConfig(mode="independent", axes=AxesConfig(ppl=4, pd=2)),
    "one axis": PartitionConfig(axes=AxesConfig(ppl=1, pd=2)),
    "some groups small": PartitionConfig(min_group_tokens=15_000),
    "all groups small": PartitionConfig(group_by=["domain"], min_group_tokens=10**9),
}


@pytest.mark.parametrize("levels", [None, 8, 1], ids=["no ties", "ties", "mostly ties"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_document_goes_where_the_rule_says(
    name: str, levels: int | None, tmp_path: Path
) -> None:
    corpus = make_corpus(1200, levels=levels)
    lines = placed(write(corpus, tmp_path), CONFIGS[name])
    expected = dict(zip(corpus.doc_id, expected_cells(corpus, CONFIGS[name]), strict=True))
    assert set(lines) == set(corpus.doc_id[corpus.scored])
    assert {i: line["quadrant"] for i, line in lines.items()} == {i: expected[i] for i in lines}
    assert len(set(expected.values()) - {None}) == len(CONFIGS[name].axes.quadrants)


def test_assignment_says_where_the_tokens_are_and_what_the_scores_were(tmp_path: Path) -> None:
    corpus = make_corpus(300)
    directory = write(corpus, tmp_path)
    lines = placed(directory)
    tables = [pq.read_table(path).to_pylist() for path in list_parts(directory.tokens, ".parquet")]
    for document in np.flatnonzero(corpus.scored):
        line = lines[corpus.doc_id[document]]
        assert line["ppl"] == pytest.approx(np.exp(corpus.loss[document]))
        assert line["pd"] == pytest.approx(1 - np.exp(-corpus.gap[document]))
        described = tables[line["part"]][line["row"]]
        assert described.items() <= line.items()


@pytest.mark.parametrize("ppl_model", ["strong", "weak"])
def test_ppl_is_that_of_the_chosen_model(ppl_model: str, tmp_path: Path) -> None:
    corpus = make_corpus(400)
    line = placed(write(corpus, tmp_path), ppl_model=ppl_model)[corpus.doc_id[corpus.scored][0]]
    loss = (corpus.loss + (corpus.gap if ppl_model == "weak" else 0))[corpus.scored][0]
    assert line["ppl"] == pytest.approx(np.exp(loss))


def test_cells_of_every_group_hold_equal_tokens_and_partition_json_says_so(tmp_path: Path) -> None:
    directory = write(make_corpus(20_000), tmp_path)
    lines = placed(directory).values()
    summary = read_json(directory.partition)
    assert len(summary["groups"]) == 4
    for group in summary["groups"]:
        names = (group["domain"], group["language"])
        tokens = [quadrant["tokens"] for quadrant in group["quadrants"].values()]
        assert (max(tokens) - min(tokens)) / np.mean(tokens) < 0.01
        for name, quadrant in group["quadrants"].items():
            inside = [
                line
                for line in lines
                if (line["domain"], line["language"], line["quadrant"]) == (*names, name)
            ]
            train = [line for line in inside if line["split"] == "train"]
            weight = np.array([line["tokens"] for line in train])
            assert quadrant["documents"] == len(train)
            assert quadrant["held_out_documents"] == len(inside) - len(train)
            assert quadrant["tokens"] == weight.sum()
            losses = np.log([line["ppl"] for line in train])
            assert quadrant["ppl"] == pytest.approx(np.exp(np.average(losses, weights=weight)))
            pds = [line["pd"] for line in train]
            assert quadrant["pd"] == pytest.approx(np.average(pds, weights=weight))
    totals = {name: quadrant["tokens"] for name, quadrant in summary["quadrants"].items()}
    parts = [{n: c["tokens"] for n, c in g["quadrants"].items()} for g in summary["groups"]]
    assert totals == {name: sum(part[name] for part in parts) for name in totals}


def test_the_record_of_a_partition_comes_back_as_it_was_written(tmp_path: Path) -> None:
    directory = write(make_corpus(400), tmp_path)
    by_language = PartitionConfig(group_by=["language"])
    record = write_assignment(by_language, ScoringConfig(), directory)
    assert read_partition_record(directory) == record
    for group in read_json(directory.partition)["groups"]:
        assert set(group) == {"language", "thresholds", "quadrants"}


def test_thresholds_in_partition_json_place_documents(tmp_path: Path) -> None:
    directory = write(make_corpus(2000), tmp_path)
    lines = placed(directory).values()
    for group in read_json(directory.partition)["groups"]:
        (ppl,), ((low,), (high,)) = group["thresholds"]["ppl"], group["thresholds"]["pd"]
        for line in lines:
            if (line["domain"], line["language"]) != (group["domain"], group["language"]):
                continue
            upper = not_before(line["doc_id"], line["ppl"], ppl)
            right = not_before(line["doc_id"], line["pd"], high if upper else low)
            assert line["quadrant"] == f"Q{1 + 2 * upper + right}"


def test_small_groups_share_the_thresholds_of_their_language(tmp_path: Path) -> None:
    corpus = make_corpus(2000)
    rare = np.flatnonzero((corpus.language == "en") & (corpus.split == "train"))[:30]
    corpus.domain[rare] = "rare"
    smallest = int(corpus.tokens[rare].sum())
    for least, small in ((smallest, 0), (smallest + 1, 1)):
        directory = write(corpus, tmp_path / str(least))
        placed(directory, PartitionConfig(min_group_tokens=least))
        summary = read_json(directory.partition)
        of = {(g["domain"], g["language"]): g["thresholds"]["of"] for g in summary["groups"]}
        assert of.pop(("rare", "en")) == ("language" if small else "group")
        assert set(of.values()) == {"group"}


def not_before(doc_id: str, value: float, begin: dict) -> bool:
    """Whether (value, doc_id) is in the bin that begins there; values up to their last digits."""
    return doc_id == begin["doc_id"] or value > begin["value"] * (1 + 1e-12)


def test_held_out_documents_do_not_move_the_cuts(tmp_path: Path) -> None:
    corpus = make_corpus(2000)
    fewer = only(corpus, corpus.split != "held_out")
    both = placed(write(corpus, tmp_path / "both"))
    alone = placed(write(fewer, tmp_path / "alone"))
    assert alone.keys() < both.keys()
    for doc_id, line in alone.items():
        assert line["quadrant"] == both[doc_id]["quadrant"]


def test_documents_without_a_place_are_counted_by_reason(tmp_path: Path) -> None:
    corpus = make_corpus(2000)
    train = np.flatnonzero(corpus.split == "train")
    corpus.loss[train[:3]] = np.nan, np.inf, -np.inf
    corpus.gap[train[3:5]] = np.nan, -800.0
    corpus.loss[train[5]] = 800.0  # a PPL beyond float64
    corpus.tokens[train[6:8]] = 0
    corpus.scored[train[8]] = False
    alone = np.flatnonzero(corpus.split == "held_out")[:2]
    corpus.language[alone] = "fi"  # a language without training documents
    directory = write(corpus, tmp_path)
    lines = placed(directory)
    without = read_json(directory.partition)["without_quadrant"]
    assert {reason: count["documents"] for reason, count in without["train"].items()} == {
        "not_finite": 6,
        "no_tokens": 2,
        "unscored": 1,
    }
    assert without["train"]["not_finite"]["tokens"] == corpus.tokens[train[:6]].sum()
    assert without["held_out"] == {
        "no_training_documents_in_language": {
            "documents": 2,
            "tokens": corpus.tokens[alone].sum(),
        }
    }
    nowhere = {i for i, line in lines.items() if line["quadrant"] is None}
    assert nowhere == set(corpus.doc_id[train[:9]]) | set(corpus.doc_id[alone])
    expected = expected_cells(corpus, PartitionConfig())
    for doc_id, quadrant in zip(corpus.doc_id, expected, strict=True):
        assert doc_id not in lines or lines[doc_id]["quadrant"] == quadrant


@pytest.mark.parametrize("documents", [1, 2, 3])
def test_tiny_groups_are_placed(documents: int, tmp_path: Path) -> None:
    corpus = make_corpus(400)
    corpus.domain[:documents] = "rare"
    corpus.language[:documents] = "fi"
    corpus.split[:documents], corpus.scored[:documents] = "train", True
    corpus.domain[-1], corpus.split[-1], corpus.scored[-1] = "unseen", "held_out", True
    lines = placed(write(corpus, tmp_path))
    expected = expected_cells(corpus, PartitionConfig())
    for document in [*range(documents), -1]:
        assert lines[corpus.doc_id[document]]["quadrant"] == expected[document] is not None


def test_order_and_number_of_parts_do_not_matter(tmp_path: Path) -> None:
    corpus = make_corpus(1500, levels=8)
    shuffled = only(corpus, np.random.default_rng(1).permutation(1500))
    one = write(corpus, tmp_path / "one", parts=1)
    seven = write(shuffled, tmp_path / "seven", parts=7)
    quadrants = [
        {doc_id: line["quadrant"] for doc_id, line in placed(directory).items()}
        for directory in (one, seven)
    ]
    assert quadrants[0] == quadrants[1]
    assert read_json(one.partition) == read_json(seven.partition)


def test_scores_of_other_parts_are_refused(tmp_path: Path) -> None:
    directory = write(make_corpus(100), tmp_path)
    list_parts(directory.scores, ".parquet")[0].unlink()
    with pytest.raises(UserError, match="redo the score phase"):
        placed(directory)


@pytest.mark.parametrize("change", [{"loss": np.nan}, {"split": "reference"}])
def test_a_corpus_without_any_place_is_refused(change: dict, tmp_path: Path) -> None:
    changes = {name: np.full(100, value) for name, value in change.items()}
    directory = write(replace(make_corpus(100), **changes), tmp_path / "it's")
    with pytest.raises(UserError, match="no document of the train split"):
        placed(directory)
    assert not directory.partition.exists() and not directory.assignment.exists()


def test_scratch_space_is_given_back(tmp_path: Path) -> None:
    directory = write(make_corpus(200), tmp_path)
    placed(directory)
    assert {path.name for path in directory.quadrants.iterdir()} == {
        "assignment.parquet",
        "partition.json",
    }


def test_a_run_directory_is_not_a_pattern_for_another(tmp_path: Path) -> None:
    wanted, other = make_corpus(300, seed=1), make_corpus(300, seed=2)
    for pattern, met in (("run[1]", "run1"), ("r*n", "ran"), ("split=train", "elsewhere")):
        directory = write(wanted, tmp_path / pattern)
        write(other, tmp_path / met)
        lines = placed(directory)
        write_assignment(PartitionConfig(), ScoringConfig(), RunDirectory(tmp_path / met))
        assert set(lines) == set(wanted.doc_id[wanted.scored])
        for document in np.flatnonzero(wanted.scored):
            line = lines[wanted.doc_id[document]]
            assert line["ppl"] == pytest.approx(np.exp(wanted.loss[document]))
            assert line["split"] == wanted.split[document]
        documents = sum(
            quadrant["documents"]
            for quadrant in read_json(directory.partition)["quadrants"].values()
        )
        assert documents == np.sum(wanted.split == "train")


@pytest.mark.parametrize("mixture", [None, MixtureConfig("domain", {"prose": 2.5, "code": 0.4})])
def test_parts_joined_by_themselves_give_the_same_partition(
    mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = make_corpus(2000)
    corpus.loss[:3] = np.nan, np.inf, 4
    corpus.tokens[5:8] = 0
    config, found = PartitionConfig(mixture=mixture), []
    for name, lines in (("whole", buckets.SLICE_LINES), ("parts", 1999)):
        monkeypatch.setattr(buckets, "SLICE_LINES", lines)
        directory = write(corpus, tmp_path / name)
        write_assignment(config, ScoringConfig(), directory)
        table = pq.read_table(directory.assignment).sort_by("doc_id")
        found.append((directory.partition.read_bytes(), table.to_pylist()))
        assert not list(directory.root.rglob(".tmp-*"))
    assert found[0] == found[1]
