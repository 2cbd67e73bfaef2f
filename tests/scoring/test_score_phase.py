"""The scoring phase: exact, resumable, refusing what cannot be scored."""

import dataclasses
import re
import weakref

import numpy as np
import pyarrow.parquet as pq
import pytest

from frame_jax.config.quadrants import RowsConfig
from frame_jax.errors import UserError
from frame_jax.run.directory import list_parts, read_json, remove, write_json
from frame_jax.scoring import running_totals, score, score_parts
from frame_jax.scoring.documents import BatchScores
from tests.scoring.numpy_decoder import document_nll
from tests.scoring.scoring_helpers import (
    BOS,
    FREQUENT,
    LENGTHS,
    VOCAB,
    make_documents,
    make_model,
    write_model,
)


def test_scores_are_those_of_a_float64_decoder(make_run, models):
    config, directory = make_run()
    result = score.score_corpus(config, directory)
    parts = list_parts(directory.scores, ".parquet")
    assert [part.name for part in parts] == [
        p.name for p in list_parts(directory.tokens, ".parquet")
    ]
    scored = [row for row in range(len(LENGTHS)) if row % 4 != 3]
    assert result["documents"] == 3 * len(scored)
    table = pq.read_table(parts[1]).to_pydict()
    assert table["doc_id"] == [f"1/{row}" for row in scored]
    documents = make_documents(seed=1)
    assert table["predicted_tokens"] == [len(documents[row]) for row in scored]
    for name, (decoder, params) in zip(("weak", "strong"), models, strict=True):
        expected = [
            document_nll(decoder.config, params, documents[row], BOS, 32, 8) for row in scored
        ]
        np.testing.assert_allclose(table[f"nll_{name}"], expected, rtol=1e-5)


def test_a_lost_part_is_made_again_byte_for_byte_and_the_others_are_left(make_run):
    config, directory = make_run()
    score.score_corpus(config, directory)
    parts = list_parts(directory.scores, ".parquet")
    before = [(part.read_bytes(), part.stat().st_mtime_ns) for part in parts]
    parts[1].unlink()
    score.score_corpus(config, directory)
    after = [(part.read_bytes(), part.stat().st_mtime_ns) for part in parts]
    assert after[0] == before[0] and after[2] == before[2]
    assert after[1][0] == before[1][0] and after[1][1] != before[1][1]


def test_models_are_not_loaded_when_every_part_is_there(make_run, monkeypatch):
    config, directory = make_run(parts=1)
    first = score.score_corpus(config, directory)
    monkeypatch.setattr(score, "load_passes", None)
    assert score.score_corpus(config, directory) == first


@pytest.mark.slow
def test_one_process_alone_reads_all_scores(make_run, monkeypatch):
    config, directory = make_run(parts=1)
    first = score.score_corpus(config, directory)
    for name, value in (
        ("process_index", 1),
        ("process_count", 2),
        ("is_first", False),
        ("barrier", None),
        ("broadcast_from_first", []),
    ):
        monkeypatch.setattr(score.processes, name, lambda *_, value=value: value)
    for name in ("scores_summary", "score_warnings"):
        monkeypatch.setattr(score, name, None)
    assert score.score_corpus(config, directory) == first


def test_parts_are_not_completed_with_other_weights(make_run):
    config, directory = make_run()
    score.score_corpus(config, directory)
    parts = list_parts(directory.scores, ".parquet")
    parts[1].unlink()
    decoder, params = make_model(2, hidden_size=48)
    params["output"][0, 0] += 1e-3
    remove(directory.reference("strong"))
    write_model(directory, "strong", decoder, params)
    with pytest.raises(
        UserError, match=r"reference.strong: its weights or its .* not those .*--redo"
    ):
        score.score_corpus(config, directory)
    assert not parts[1].exists()
    for part in (parts[0], parts[2]):  # nothing is left to be mixed with
        part.unlink()
    score.score_corpus(config, directory)


def test_one_part_is_in_memory_at_a_time(make_run, monkeypatch):
    config, directory = make_run(parts=4)
    known, alive = [], []
    read, write = score_parts.read_index, score_parts.write_scores

    def read_noted(part, *columns, most):
        table = read(part, *columns, most=most)
        known.append(weakref.ref(table))
        return table

    def write_noted(*arguments):
        alive.append(sum(table() is not None for table in known))
        write(*arguments)

    monkeypatch.setattr(score_parts, "read_index", read_noted)
    monkeypatch.setattr(score_parts, "write_scores", write_noted)
    score.score_corpus(config, directory)
    assert alive == [1] * 4


def test_a_model_worse_than_chance_is_refused_and_nothing_is_written(make_run):
    decoder, params = make_model(1)
    params["output"] = -params["output"]
    config, directory = make_run(models=[make_model(2), (decoder, params)])
    with pytest.raises(UserError, match="strong reference model predicts worse than chance"):
        score.score_corpus(config, directory)
    assert not list_parts(directory.scores, ".parquet")


def test_a_model_hardly_worse_than_chance_is_refused_before_a_part_is_whole(make_run, monkeypatch):
    decoder, params = make_model(1)
    params["output"] = params["output"] * np.float32(1e-3)
    params["output"][FREQUENT:, 0] += 5e-3
    config, directory = make_run(models=[(decoder, params), make_model(2)])
    monkeypatch.setattr(running_totals, "CHECK_TOKENS", 500)
    monkeypatch.setattr(score_parts, "write_scores", None)
    with pytest.raises(UserError, match=r"weak reference model predicts worse .* over ([\d,]+) to"):
        score.score_corpus(config, directory)
    assert not list_parts(directory.scores, ".parquet")


def test_exchanged_models_are_said_early_and_late(make_run, capsys):
    weak, strong = make_model(1), make_model(2, hidden_size=48)
    strong[1]["output"][:FREQUENT, 0] += 1  # knows much better which tokens are frequent
    config, directory = make_run(models=[weak, strong])
    result = score.score_corpus(config, directory)
    assert result["negative_pd"] < result["documents"] / 2 and result["warnings"] == []
    assert "warning" not in capsys.readouterr().err
    config, directory = make_run("exchanged", models=[strong, weak])
    result = score.score_corpus(config, directory)
    assert result["negative_pd"] > 0.9 * (result["documents"] - 3)  # three have no token
    [warning] = result["warnings"]
    said = f"{result['negative_pd']} of {result['documents']} documents have a negative PD"
    assert said in warning and "are reference.weak and reference.strong exchanged?" in warning
    early, late = (line for line in capsys.readouterr().err.splitlines() if "warning: " in line)
    assert "nats a token over" in early and said in late


def test_documents_of_which_most_have_a_negative_pd_are_said(make_run):
    """Also where a few long ones make the weak model the worse one in the mean."""
    config, _ = make_run(models=[make_model(1), make_model(2)])
    found = {"documents": 100, "mean_nll_weak": 3.0, "mean_nll_strong": 2.9}
    [warning] = score.score_warnings(config, found | {"negative_pd": 51}, [])
    assert "51 of 100 documents have a negative PD" in warning
    assert not list(score.score_warnings(config, found | {"negative_pd": 50}, []))


def test_one_model_in_both_places_is_refused_before_scoring(make_run):
    config, directory = make_run(models=[make_model(1), make_model(1)])
    with pytest.raises(UserError, match=r"reference.weak and reference.strong hold the same weig"):
        score.score_corpus(config, directory)
    assert not directory.scores.exists()


def test_windows_longer_than_the_rows_that_trained_the_models_are_said(make_run, capsys):
    config, directory = make_run(context=64)
    for rows, longer in ((64, None), (40, 12), (200, None), (150, None)):
        rows_config = RowsConfig(sequence_length=rows)
        changed = dataclasses.replace(config.reference, rows=rows_config)
        result = score.score_corpus(dataclasses.replace(config, reference=changed), directory)
        if longer is None:
            assert result["warnings"] == []
            continue
        [warning] = result["warnings"]
        assert f"{longer} of {result['documents']} documents are longer" in warning
        assert "scoring.context is 64 tokens" in warning and "rows of 40" in warning
        assert warning in capsys.readouterr().err


def test_a_model_without_a_row_for_a_token_is_refused(make_run):
    config, directory = make_run(models=[make_model(1), make_model(2, hidden_size=48)])
    path = directory.tokenizer.with_name("special_tokens.json")
    write_json(path, read_json(path) | {"vocab_size": VOCAB + 1})
    with pytest.raises(UserError, match=f"knows {VOCAB} tokens, but .* has {VOCAB + 1}: both ref"):
        score.score_corpus(config, directory)
    assert not directory.scores.exists()


def test_a_model_whose_perplexity_is_beyond_any_number_is_refused(make_run):
    decoder, params = make_model(1)
    params["output"] = params["output"] * np.float32(1e6)
    config, directory = make_run(models=[make_model(2), (decoder, params)])
    with pytest.raises(UserError, match="strong reference model predicts worse than chance"):
        score.score_corpus(config, directory)


def test_the_meter_shows_speed_ppl_and_pd_whatever_the_numbers(recwarn):
    shown = []
    meter = score_parts.RunningTotals(
        lambda amount, note: shown.append((amount, note)), {"weak": VOCAB, "strong": VOCAB}
    )
    meter.add_batch(BatchScores(3, 10, np.log([8.0, 4.0]) * 10))
    meter.add_batch(BatchScores(1, 10, np.array([1e6, 1e5])))
    assert [amount for amount, _ in shown] == [10, 10]
    assert re.match(r"3 documents, [\d.,]+ documents/s, PPL 4.0, PD \+0.500", shown[0][1])
    assert shown[1][1].startswith("4 documents") and not recwarn


def test_weights_that_are_not_numbers_are_refused(make_run):
    decoder, params = make_model(1)
    params["final_norm"][0] = np.nan
    config, directory = make_run(models=[(decoder, params), make_model(2)])
    with pytest.raises(UserError, match="weak reference model"):
        score.score_corpus(config, directory)


def test_a_model_with_too_small_a_vocabulary_is_refused(make_run):
    config, directory = make_run()
    special_tokens = directory.tokenizer.with_name("special_tokens.json")
    special_tokens.write_text(special_tokens.read_text().replace(str(VOCAB), str(VOCAB + 1)))
    with pytest.raises(UserError, match=f"knows {VOCAB} tokens.* has {VOCAB + 1}"):
        score.score_corpus(config, directory)


def test_a_missing_reference_model_is_named(make_run):
    config, directory = make_run(parts=1)
    (directory.reference("weak") / "model.json").unlink()
    with pytest.raises(UserError, match=r"no weak reference model.*reference phase"):
        score.score_corpus(config, directory)
