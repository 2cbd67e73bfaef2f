"""Partitions whose quadrants mean little are refused or named."""

from pathlib import Path

import numpy as np
import pytest

from frame_jax.config.quadrants import PartitionConfig
from frame_jax.config.scoring import ScoringConfig
from frame_jax.errors import UserError
from frame_jax.quadrants import partition
from frame_jax.quadrants.partition import write_assignment
from frame_jax.run.directory import read_json
from tests.quadrants.corpus import make_corpus, run_config, write


def test_groups_of_one_document_are_refused_and_the_ways_on_are_named(tmp_path: Path) -> None:
    """A domain that is the page's address: every document would be its own threshold."""
    corpus = make_corpus(400)
    corpus.domain = np.char.add("https://example.com/", corpus.doc_id)
    directory = write(corpus, tmp_path)
    with pytest.raises(UserError) as error:
        partition.partition_corpus(run_config(directory), directory)
    training = int((corpus.split == "train").sum())
    message = str(error.value)
    assert f"{training} of {training} training documents" in message
    assert f"({training} groups)" in message and "Nothing is left for Q1, Q2, Q3" in message
    assert "partition.group_by" in message and "partition.min_group_tokens" in message
    assert not directory.partition.exists() and not directory.assignment.exists()
    for name, ways in {
        "language": {"group_by": ["language"]},
        "tokens": {"min_group_tokens": 1_000_000},
    }.items():
        directory = write(corpus, tmp_path / name)
        write_assignment(PartitionConfig(**ways), ScoringConfig(), directory)
        summary = read_json(directory.partition)
        assert all(quadrant["documents"] > 20 for quadrant in summary["quadrants"].values())
        assert summary["thin_groups"] == {"groups": 0, "documents": 0}
        assert summary["warnings"] == []


def test_some_groups_of_few_documents_are_said(tmp_path: Path, capsys) -> None:
    corpus = make_corpus(400)
    alone = np.arange(400) % 4 == 0
    corpus.domain = np.where(alone, np.char.add("host-", corpus.doc_id), corpus.domain)
    directory = write(corpus, tmp_path, with_texts=True)
    result = partition.partition_corpus(run_config(directory), directory)
    [warning] = result["warnings"]
    few = int((alone & (corpus.split == "train")).sum())
    assert warning.startswith(f"{few} of ") and "partition.min_group_tokens" in warning
    assert f"warning: {warning}" in capsys.readouterr().err
    assert read_json(directory.partition)["thin_groups"] == {"groups": few, "documents": few}


def tokens_tied(values: np.ndarray, corpus, quadrants: np.ndarray) -> float:
    """Share of the tokens at the value of the first document whose middle is in the upper half."""
    tied = 0
    for quadrant in np.unique(quadrants):
        inside = np.flatnonzero(quadrants == quadrant)
        order = inside[np.lexsort((corpus.doc_id[inside], values[inside]))]
        tokens = corpus.tokens[order]
        first = order[np.argmax(2 * np.cumsum(tokens) - tokens >= tokens.sum())]
        same = inside[values[inside] == values[first]]
        tied += corpus.tokens[same].sum() if len(same) > 1 else 0
    return tied / corpus.tokens.sum()


def test_values_that_many_documents_share_at_a_threshold_are_said(tmp_path: Path) -> None:
    """As an education score from 0 to 5 is shared."""
    corpus = make_corpus(600)
    corpus.split[:], corpus.language[:], corpus.domain[:] = "train", "en", "prose"
    corpus.scored[:], corpus.tokens[:] = True, 2 ** np.arange(600) % 64 + 1
    corpus.loss = np.random.default_rng(0).integers(0, 4, 600) / 4.0
    directory = write(corpus, tmp_path)
    write_assignment(PartitionConfig(), ScoringConfig(), directory)
    summary = read_json(directory.partition)
    wanted = tokens_tied(corpus.loss, corpus, np.zeros(600))
    assert summary["tied"] == {"ppl": pytest.approx(wanted), "pd": 0} and 0.2 < wanted < 0.6
    [warning] = summary["warnings"]
    assert warning.startswith(f"{wanted:.0%} of the training tokens are in documents whose PPL is")


@pytest.mark.parametrize("constant", ["loss", "gap"])
def test_an_axis_with_one_value_is_refused(tmp_path: Path, constant: str) -> None:
    corpus = make_corpus(300)
    corpus.tokens[:] = 16  # sums come back exactly
    setattr(corpus, constant, np.full(300, 0.5))
    if constant == "gap":
        corpus.loss = np.rint(corpus.loss * 8) / 8
    directory = write(corpus, tmp_path)
    name = "PPL" if constant == "loss" else "PD"
    with pytest.raises(UserError, match=f"{name} has one value for all training documents"):
        write_assignment(PartitionConfig(), ScoringConfig(), directory)
    assert not directory.partition.exists() and not directory.assignment.exists()
