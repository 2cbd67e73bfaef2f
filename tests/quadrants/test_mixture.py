"""Mixtures: how often each document is read, what that makes of thresholds and rows, refusals."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from frame_jax.config.curriculum import CurriculumConfig
from frame_jax.config.quadrants import AxesConfig, MixtureConfig, PartitionConfig, RowsConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.curriculum.presets import expand_curriculum
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.curriculum.stages import resolve_curriculum
from frame_jax.errors import UserError
from frame_jax.quadrants import partition
from frame_jax.quadrants.mixture import resolve_mixture, tokenized_mixture
from frame_jax.quadrants.partition import write_assignment
from frame_jax.quadrants.rows import list_training_documents, pack_documents
from frame_jax.run.directory import RunDirectory, list_parts, read_json
from frame_jax.run.partition_record import read_partition_record
from frame_jax.run.special_tokens import SpecialTokens
from tests.quadrants.corpus import (
    BOS,
    EOS,
    Corpus,
    expected_cells,
    expected_copies,
    make_corpus,
    run_config,
    write,
)

QUADRANTS = ("Q1", "Q2", "Q3", "Q4")
REPEATS = {"prose": 2.6, "code": 0.4}
MIXTURE = MixtureConfig(by="domain", repeats=REPEATS)
ROWS = RowsConfig(sequence_length=63, parts=4)


def lines_of(directory: RunDirectory) -> dict[str, dict]:
    return {line["doc_id"]: line for line in pq.read_table(directory.assignment).to_pylist()}


def assigned(corpus: Corpus, root: Path, **settings) -> dict[str, dict]:
    """{doc_id: line of assignment.parquet}."""
    directory = write(corpus, root)
    write_assignment(PartitionConfig(**settings), ScoringConfig(), directory)
    return lines_of(directory)


def test_copies_are_those_of_a_hash_of_the_id_whatever_the_group_is(tmp_path: Path) -> None:
    corpus = make_corpus(3000)
    train = np.flatnonzero(corpus.split == "train")
    corpus.scored[train[0]], corpus.loss[train[1]] = False, np.nan
    lines = assigned(corpus, tmp_path, mixture=MIXTURE)
    wanted = expected_copies(corpus, "domain", REPEATS)
    wanted[train[:2]] = 0  # what has no quadrant is in no row
    found = {doc_id: line["copies"] for doc_id, line in lines.items()}
    named = zip(corpus.doc_id, wanted, strict=True)
    assert found == {doc_id: copies for doc_id, copies in named if doc_id in found}
    prose = wanted[train][corpus.domain[train] == "prose"]
    assert set(prose[2:]) == {2, 3} and 2.5 < prose.mean() < 2.7


def test_what_is_read_at_fewer_repeats_is_read_at_more(tmp_path: Path) -> None:
    corpus = make_corpus(1500)
    before = np.zeros(len(corpus.scored[corpus.scored]))
    for repeats in (0.0, 0.1, 0.4, 0.7, 1.0, 1.3, 2.0, 3.7):
        mixture = MixtureConfig(by="domain", repeats={"code": repeats})
        lines = assigned(corpus, tmp_path / str(repeats), mixture=mixture)
        copies = np.array([lines[doc_id]["copies"] for doc_id in corpus.doc_id[corpus.scored]])
        code = (corpus.domain == "code")[corpus.scored]
        assert (copies >= before)[code].all()
        trained = (corpus.split == "train")[corpus.scored]
        assert (copies[~code & trained] == 1).all() and (copies[~trained] == 0).all()
        assert copies[code & trained].mean() == pytest.approx(repeats, abs=0.08)
        before = np.where(code, copies, 0)


CONFIGS = {
    "default": {},
    "by source": {"group_by": ["source"]},
    "independent grid": {"mode": "independent", "axes": AxesConfig(ppl=3, pd=2)},
    "some groups small": {"min_group_tokens": 15_000},
}


@pytest.mark.parametrize("levels", [None, 8], ids=["no ties", "ties"])
@pytest.mark.parametrize("name", CONFIGS)
def test_thresholds_count_every_copy(name: str, levels: int | None, tmp_path: Path) -> None:
    corpus = make_corpus(1200, levels=levels)
    config = PartitionConfig(mixture=MIXTURE, **CONFIGS[name])
    lines = assigned(corpus, tmp_path, mixture=MIXTURE, **CONFIGS[name])
    copies = expected_copies(corpus, "domain", REPEATS)
    expected = dict(zip(corpus.doc_id, expected_cells(corpus, config, copies), strict=True))
    plain = dict(zip(corpus.doc_id, expected_cells(corpus, config), strict=True))
    assert {i: line["quadrant"] for i, line in lines.items()} == {i: expected[i] for i in lines}
    assert expected != plain


def test_contents_and_the_table_count_every_copy(tmp_path: Path) -> None:
    corpus = make_corpus(4000)
    directory = write(corpus, tmp_path)
    config = PartitionConfig(
        mixture=MixtureConfig(by="source", repeats={"code-a": 0, "prose-b": 2})
    )
    early = tokenized_mixture(config, directory)
    record = write_assignment(config, ScoringConfig(), directory)
    assert read_partition_record(directory) == record
    lines = [line for line in lines_of(directory).values() if line["split"] == "train"]
    for name, contents in record.quadrants.items():
        own = [line for line in lines if line["quadrant"] == name and line["copies"]]
        weight = np.array([line["tokens"] * line["copies"] for line in own])
        assert (contents.documents, contents.tokens) == (len(own), weight.sum())
        losses = np.log([line["ppl"] for line in own])
        assert contents.ppl == pytest.approx(np.exp(np.average(losses, weights=weight)))
        pds = [line["pd"] for line in own]
        assert contents.pd == pytest.approx(np.average(pds, weights=weight))
    assert record.mixture is not None
    groups = {group.name: group for group in record.mixture.groups}
    assert list(groups) == ["code-a", "code-b", "prose-a", "prose-b"]
    for name, group in groups.items():
        own = [line for line in lines if line["source"] == name]
        assert group.tokens == sum(line["tokens"] for line in own)
        assert group.read == group.tokens * group.repeats == sum(group.quadrants.values())
        inside = [line for line in own if line["quadrant"] == "Q2"]
        assert group.quadrants["Q2"] == sum(line["tokens"] * line["copies"] for line in inside)
    assert sum(group.share for group in groups.values()) == pytest.approx(1)
    assert [group.read for group in early.groups] == [g.read for g in record.mixture.groups]
    header, *rows = record.mixture.lines()
    assert header[:4] == ["source", "tokens there are", "repeats", "share wanted"]
    assert rows[0][2:6] == ["0", "0.00%", "0.00%", "0"] and header[6:] == list(QUADRANTS)


def test_repeats_follow_from_weights_and_tokens(tmp_path: Path) -> None:
    corpus = make_corpus(4000)
    directory = write(corpus, tmp_path)
    train = corpus.split == "train"
    there = {name: int(corpus.tokens[train & (corpus.domain == name)].sum()) for name in REPEATS}
    weights = {"prose": 3.0, "code": 1.0}
    largest = min(4 * there["prose"] / 0.75, 4 * there["code"] / 0.25)

    def config(tokens: float, **more: float) -> PartitionConfig:
        mixture = MixtureConfig(by="domain", weights=weights | more, tokens=tokens)
        return PartitionConfig(mixture=mixture)

    mixture = resolve_mixture(config(100_000), list_parts(directory.tokens, ".parquet"))
    for group in mixture.groups:
        share = weights[str(group.name)] / 4
        assert group.share == pytest.approx(share)
        assert group.repeats == pytest.approx(100_000 * share / there[str(group.name)])
    got = tokenized_mixture(config(100_000), directory)
    assert got.read == pytest.approx(100_000, rel=0.05)
    with pytest.raises(UserError) as error:
        tokenized_mixture(config(int(largest) + 1), directory)
    message = str(error.value)
    name = min(there, key=lambda name: there[name] / weights[name])
    assert f"reads {name} 4.00 times (of {there[name]:,} tokens)" in message
    assert message.count("times") == 1 and "max_repeats is 4" in message
    assert f"tokens: {int(largest)};" in message
    allowed = tokenized_mixture(config(int(largest)), directory)  # as it says
    assert max(group.repeats for group in allowed.groups) == pytest.approx(4, rel=1e-4)
    only = MixtureConfig(by="domain", weights={"code": 1}, tokens=20_000)
    groups = tokenized_mixture(PartitionConfig(mixture=only), directory).groups
    assert {group.name: group.read > 0 for group in groups} == {"code": True, "prose": False}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give either repeats, or weights with the tokens"),
        ({"repeats": {"a": 1}, "weights": {"a": 1}, "tokens": 5}, "give either repeats, or"),
        ({"weights": {"a": 1}}, "give either repeats, or weights with the tokens"),
        ({"repeats": {"a": 1}, "tokens": 5}, "give either repeats, or weights with the tokens"),
        ({"repeats": {"a": -1}}, "repeats.a must be at least 0 and finite, not -1"),
        ({"weights": {"a": np.inf}, "tokens": 5}, "weights.a must be at least 0 and finite"),
        ({"repeats": {"a": np.nan}}, "repeats.a must be at least 0 and finite, not nan"),
        ({"repeats": {"a": 4.5}}, "repeats.a is 4.5, and partition.mixture.max_repeats 4"),
        ({"weights": {"a": 0}, "tokens": 5}, "at least one group a weight above 0"),
        ({"weights": {"a": 1}, "tokens": 0}, "mixture.tokens must be positive and finite"),
        ({"repeats": {"a": 1}, "max_repeats": 0}, "mixture.max_repeats must be positive"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PartitionConfig(mixture=MixtureConfig(by="domain", **settings))


def test_what_the_corpus_cannot_give_is_refused(tmp_path: Path) -> None:
    directory = write(make_corpus(400), tmp_path)
    tokens = list_parts(directory.tokens, ".parquet")
    for repeats, message in (
        ({"prosa": 1}, "has the domain 'prosa'; there are: 'code', 'prose'"),
        ({"prose": 0, "code": 0}, "leaves no training document to read"),
    ):
        mixture = MixtureConfig(by="domain", repeats=repeats)
        with pytest.raises(UserError, match=message):
            resolve_mixture(PartitionConfig(mixture=mixture), tokens)
    with pytest.raises(UserError, match="to 3 or more"):
        PartitionConfig(rows=RowsConfig(parts=2), mixture=MIXTURE)
    weights = MixtureConfig(by="domain", weights={"code": 1}, tokens=30_000)
    config = PartitionConfig(rows=RowsConfig(parts=1), mixture=weights)
    with pytest.raises(UserError, match="parts is 1, and"):
        resolve_mixture(config, tokens)


def packed_copies(
    directory: RunDirectory, rows: RowsConfig
) -> dict[str, tuple[dict[str, list[set[int]]], int]]:
    """Of each quadrant: the rows that hold each copy of a document, and the number of rows."""
    files = [(quadrant, part) for quadrant in QUADRANTS for part in range(rows.parts)]
    found = {}
    config = run_config(directory, rows=rows)
    with list_training_documents(config, directory, files, directory.root, doc_ids=True) as select:
        for quadrant in QUADRANTS:
            before, own = 0, dict[str, list[set[int]]]()
            for part in range(rows.parts):
                documents = select(quadrant, part)
                packed = pack_documents(documents, rows, SpecialTokens(BOS, EOS, EOS + 1))
                assert documents.doc_id is not None
                names = documents.doc_id.to_pylist()
                assert len(set(names)) == len(names)
                held = [set[int]() for _ in names]
                for document, row in zip(packed.document, packed.row, strict=True):
                    held[document].add(before + int(row))
                for name, places in zip(names, held, strict=True):
                    own.setdefault(name, []).append(places)
                before += packed.rows
            found[quadrant] = own, before
    return found


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize("parts", [3, 5])
def test_each_copy_is_in_rows_of_its_own(packing: str, parts: int, tmp_path: Path) -> None:
    corpus = make_corpus(900)
    corpus.tokens[:3] = 700, 62, 63
    directory = write(corpus, tmp_path, with_texts=True)
    rows = RowsConfig(sequence_length=63, packing=packing, parts=parts)  # type: ignore[arg-type]
    counts = partition.partition_corpus(
        run_config(directory, rows=rows, mixture=MIXTURE), directory
    )
    lines, most = lines_of(directory), 0
    for quadrant, (copies, total) in packed_copies(directory, rows).items():
        wanted = {i: line for i, line in lines.items() if line["quadrant"] == quadrant}
        found = {name: len(places) for name, places in copies.items()}
        assert found == {i: line["copies"] for i, line in wanted.items() if line["copies"]}
        for places in copies.values():
            assert len(set.union(*places)) == sum(map(len, places))  # no row holds two
        assert counts[quadrant]["rows"] == total
        assert counts[quadrant]["documents"] == sum(found.values())
        tokens = sum(wanted[name]["tokens"] * often for name, often in found.items())
        assert counts[quadrant]["tokens"] == tokens
        assert read_partition_record(directory).quadrants[quadrant].tokens == tokens
        most = max(most, *found.values())
    assert most == 3


def test_without_a_mixture_nothing_changes(tmp_path: Path) -> None:
    """Nor with one that reads all once, nor from the assignment of an older release."""
    corpus = make_corpus(600)
    plain = write(corpus, tmp_path / "plain", with_texts=True)
    once, old = (RunDirectory(shutil.copytree(plain.root, tmp_path / n)) for n in ("once", "old"))
    partition.partition_corpus(run_config(plain, rows=ROWS), plain)
    reading = MixtureConfig(by="domain", repeats={"prose": 1})
    partition.partition_corpus(run_config(once, rows=ROWS, mixture=reading), once)
    shutil.copytree(plain.quadrants, old.quadrants, ignore=lambda *_: QUADRANTS)
    pq.write_table(pq.read_table(plain.assignment).drop_columns(["copies"]), old.assignment)
    partition.partition_corpus(run_config(old, rows=ROWS), old)
    assert read_json(plain.partition)["mixture"] is None
    files = sorted(plain.quadrants.glob("Q*/part-*"))
    assert len(files) == 2 * 4 * ROWS.parts
    for path in files:
        for other in (once, old):
            there = other.quadrants / path.relative_to(plain.quadrants)
            assert there.read_bytes() == path.read_bytes()
    copies = Counter((line["split"], line["copies"]) for line in lines_of(plain).values())
    assert set(copies) == {("train", 1), ("held_out", 0)}


def test_copies_are_as_far_apart_as_chance_puts_them(tmp_path: Path) -> None:
    """In the order of training; against pairs of rows drawn at random from different parts."""
    corpus = make_corpus(6000)
    corpus.split[:] = "train"
    corpus.scored[:] = True
    directory = write(corpus, tmp_path)
    mixture = MixtureConfig(by="domain", repeats={"prose": 2, "code": 2})
    config = PartitionConfig(rows=ROWS, mixture=mixture)
    write_assignment(config, ScoringConfig(), directory)
    packed = packed_copies(directory, ROWS)
    totals = {quadrant: total for quadrant, (_, total) in packed.items()}
    curriculum = CurriculumConfig(preset="random")
    schedule = resolve_curriculum(
        expand_curriculum(curriculum, AxesConfig()), totals, batch_size=8, sequence_length=63
    )
    selection = SelectionMap(schedule, seed=0)
    random, found, chance = np.random.default_rng(0), [], []
    for index, quadrant in enumerate(QUADRANTS):
        copies, total = packed[quadrant]
        row_index = selection.inverse(index, np.arange(total), 0)
        pairs = np.array([[min(one), min(two)] for one, two in copies.values()])
        found.append(np.abs(np.diff(row_index[pairs], axis=1)).ravel())
        for _ in range(20):
            drawn = np.array([random.choice(total, 2, replace=False) for _ in pairs])
            chance.append(np.abs(np.diff(row_index[drawn], axis=1)).ravel())
    ours, theirs = (np.sort(np.concatenate(each)) for each in (found, chance))
    assert ours[0] > 0 and ours.mean() == pytest.approx(theirs.mean(), rel=0.03)
    points = np.linspace(0, ours.max(), 200)
    below = [np.searchsorted(each, points) / len(each) for each in (ours, theirs)]
    gap = np.abs(below[0] - below[1])
    assert gap.max() < 1.63 * np.sqrt(1 / len(ours) + 1 / len(theirs))  # Kolmogorov, Smirnov: 1%
