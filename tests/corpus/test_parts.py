"""Splits by hash, the plan of parts, the sample and the signature."""

import dataclasses
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frame_jax.config.corpus import SourceConfig, TokenizerConfig
from frame_jax.corpus.documents import assign_split, unit_hash
from frame_jax.corpus.parts import _slice_counts, corpus_signature, plan_parts, sample_documents


def test_splits_have_the_asked_fractions_and_never_change():
    ids = [f"doc-{i}" for i in range(20_000)]
    counts = Counter(assign_split(i, 0, 0.05, 0.2) for i in ids)
    # Five standard deviations of a binomial.
    assert abs(counts["held_out"] - 1000) < 155
    assert abs(counts["reference"] - 4000) < 285
    # Literal values: another platform, Python or release must agree, or runs cannot be resumed.
    known = {2: "train", 20: "reference", 21: "held_out", 24: "reference", 26: "held_out"}
    assert {i: assign_split(f"doc-{i}", 0, 0.05, 0.2) for i in known} == known
    assert assign_split("中文", 0, 0, 0) == "train"
    # Growing one fraction moves documents only into it.
    before = [assign_split(i, 0, 0.05, 0.2) for i in ids]
    after = [assign_split(i, 0, 0.05, 0.3) for i in ids]
    assert all(
        a == b or (a, b) == ("train", "reference") for a, b in zip(before, after, strict=True)
    )


def test_seeds_split_independently():
    ids = [f"doc-{i}" for i in range(20_000)]
    both = sum(assign_split(i, 0, 0.2, 0) == assign_split(i, 1, 0.2, 0) == "held_out" for i in ids)
    assert abs(both - 800) < 140


@given(st.text(), st.text())
def test_hashes_lie_in_the_unit_interval(name, salt):
    name, salt = (x.encode("utf-8", "replace").decode() for x in (name, salt))
    assert 0 <= unit_hash(name, salt) < 1


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=40), st.integers(1, 64))
def test_large_inputs_are_cut_so_that_parts_can_be_even(sizes, parts):
    counts = _slice_counts(sizes, parts)
    assert all(count >= 1 for count in counts)
    assert sum(counts) <= max(parts, len(sizes) + parts)
    if len(sizes) >= parts:
        assert max(s / c for s, c in zip(sizes, counts, strict=True)) <= sum(sizes) / parts * 1.001
    elif sum(sizes):
        assert sum(counts) == parts or max(
            s / c for s, c in zip(sizes, counts, strict=True)
        ) <= sum(sizes) / parts * (1 + 1e-9)


@pytest.mark.parametrize("parts", [1, 3, 8, 50])
def test_parts_hold_every_record_once_and_similar_amounts(write_jsonl, records, make_config, parts):
    for name, share in (("a", records[:90]), ("b", records[90:110]), ("c", records[110:])):
        write_jsonl(f"{name}.jsonl", share)
    folder = write_jsonl("a.jsonl", records[:90]).parent
    config = make_config(SourceConfig(kind="jsonl", path=str(folder)), parts=parts)
    found = [
        [r.id for chunk in chunks for r in chunk.read_records()]
        for chunks in plan_parts(config.corpus)
    ]
    assert len(found) == parts
    assert Counter(i for ids in found for i in ids) == Counter(r["id"] for r in records)
    if parts == 3:
        assert max(map(len, found)) <= 60


def test_sample_is_bounded_reaches_every_file_and_ignores_parts(write_jsonl, records, make_config):
    folder = write_jsonl("a.jsonl", records[:60]).parent
    write_jsonl("b.jsonl", [b"broken", *records[60:]])
    source = SourceConfig(kind="jsonl", path=str(folder))
    corpus = make_config(source, parts=3).corpus
    everything = list(sample_documents(corpus, 10**9))
    assert len(everything) == 120
    few = list(sample_documents(corpus, 1500))
    sizes = [len(d.text.encode()) for d in few]
    assert sum(sizes[:-1]) < 1500 and sum(sizes) > 400
    lines = {
        name: [d.line for d in few if d.file.endswith(name)] for name in ("a.jsonl", "b.jsonl")
    }
    # Not only the beginning of a file.
    assert max(lines["a.jsonl"]) > 40 and max(lines["b.jsonl"]) > 40
    assert list(sample_documents(dataclasses.replace(corpus, parts=7), 1500)) == few


def test_signature_changes_with_the_files_and_only_then(
    write_jsonl, records, make_config, tmp_path
):
    path = write_jsonl("a.jsonl", records)
    source = SourceConfig(kind="jsonl", path=str(path.parent))
    config = make_config(source)
    first = corpus_signature(config)
    assert (
        corpus_signature(config)
        == first
        == corpus_signature(make_config(source, parts=3, run="other"))
    )
    write_jsonl("b.jsonl", records[:1])
    added = corpus_signature(config)
    write_jsonl("b.jsonl", records[:2])
    grown = corpus_signature(config)
    path.with_name("b.jsonl").unlink()
    assert len({first, added, grown}) == 3 and corpus_signature(config) == first
    text = make_config(SourceConfig(kind="text", path=str(path.parent)))
    before = corpus_signature(text)
    path.rename(path.with_name("renamed.jsonl"))
    assert corpus_signature(text) != before
    given_file = tmp_path / "tokenizer.json"
    given_file.write_text("1")
    with_tokenizer = make_config(
        SourceConfig(kind="text", path=str(path.parent)),
        tokenizer=TokenizerConfig(path=str(given_file)),
    )
    before = corpus_signature(with_tokenizer)
    given_file.write_text("2")
    assert corpus_signature(with_tokenizer) != before
