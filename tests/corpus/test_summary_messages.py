"""What tokenize says at its end, and what it advises where ids come twice."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from frame_jax.config.corpus import SourceConfig
from frame_jax.corpus import tokenize
from frame_jax.errors import UserError
from frame_jax.report import chapters
from frame_jax.run.directory import RunDirectory


def run(config):
    directory = RunDirectory(config.run_directory)
    return tokenize.tokenize_corpus(config, directory), directory


def test_it_says_how_many_records_were_rejected_and_why(
    make_config, write_jsonl, records, capsys
) -> None:
    bad = [
        b"{",
        b"{2",
        {"id": "no text"},
        {"text": "x", "domain": 3},
        records[3],
        b'{"text": "\xff"}',
    ]
    path = write_jsonl("a.jsonl", [*records, *bad])
    config = make_config(SourceConfig(kind="jsonl", path=str(path)), max_rejected_fraction=0.1)
    summary, directory = run(config)
    wanted = {
        "broken JSON": 2,
        "duplicate id": 1,
        "no text": 1,
        "not UTF-8": 1,
        "the field 'domain' holds int, not text": 1,
    }
    assert summary["rejected_for"] == wanted and summary["rejected"] == 6
    assert next(iter(summary["rejected_for"])) == "broken JSON"
    assert (
        "corpus: 120 documents, 6 records rejected (2 broken JSON; 1 duplicate id; 1 no text; "
        f"...), listed in {directory.rejected}\n"
    ) in capsys.readouterr().err
    assert run(config)[0] == summary  # with all parts there
    # The report says it too.
    directory.marker("tokenize").write_text(json.dumps({"summary": summary}))
    page = "".join(str(piece) for piece in chapters.settings_chapter(config))
    assert "6 records rejected (2 broken JSON; 1 duplicate id; 1 no text; ...), listed in" in page
    assert "no record has the field" not in page


def test_it_says_which_fields_no_record_has(make_config, write_jsonl, capsys, tmp_path) -> None:
    plain = [{"text": f"plain {k}"} for k in range(60)]
    full = [{"text": f"full {k}", "language": "en", "domain": "text"} for k in range(9)]
    some = [{"text": f"some {k}"} | ({"language": "zh"} if k == 5 else {}) for k in range(9)]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a text has no fields")
    sources = [
        SourceConfig(kind="jsonl", path=str(write_jsonl(name, lines)), **fields)
        for name, lines, fields in (
            ("plain.jsonl", plain, {}),
            ("full.jsonl", full, {}),
            ("some.jsonl", some, {"domain_field": None}),
            ("own.jsonl", plain[:3], {"domain_field": "topic", "language": "de", "name": "own"}),
        )
    ]
    sources.append(SourceConfig(kind="text", path=str(tmp_path / "texts")))
    config = make_config(*sources, parts=3)
    wanted = [
        "corpus.sources[0]: no record has the field 'domain' (domain_field), so the domain of all "
        "60 is 'text'",
        "corpus.sources[0]: no record has the field 'language' (language_field), so the language "
        "of all 60 is 'en'",
        "corpus.sources[3]: no record has the field 'topic' (domain_field), so the domain of all "
        "3 is 'text'",
        "corpus.sources[3]: no record has the field 'language' (language_field), so the language "
        "of all 3 is 'de'",
    ]
    summary, _ = run(config)
    assert summary["fields_never_found"] == wanted
    shown = capsys.readouterr().err
    assert all(f"{line}\n" in shown for line in wanted) and "0 records rejected\n" in shown


def test_counts_outlive_the_marking_of_duplicates(make_config, write_jsonl) -> None:
    lines = [{"text": f"text {k}", "id": str(k % 5)} for k in range(10)]
    source = SourceConfig(kind="jsonl", path=str(write_jsonl("a.jsonl", lines)))
    summary, _ = run(make_config(source, max_rejected_fraction=0.5))
    assert summary["rejected_for"] == {"duplicate id": 5}
    assert len(summary["fields_never_found"]) == 2


@pytest.fixture
def languages(tmp_path):
    """Two folders with a Parquet file of the same name; `ids` says whether records carry ids."""

    def write(ids: bool):
        for language in ("en", "zh"):
            path = tmp_path / language / "train-00000-of-00001.parquet"
            path.parent.mkdir()
            columns = {"text": [f"{language} {k}" for k in range(20)]}
            if ids:
                columns["id"] = [f"article-{k}" for k in range(20)]
            pq.write_table(pa.table(columns), path)
        return [
            SourceConfig(kind="parquet", path=str(tmp_path / language), language=language)
            for language in ("en", "zh")
        ]

    return write


@pytest.mark.parametrize("ids", [False, True])
def test_ids_of_two_sources_that_are_the_same_say_what_helps(languages, make_config, ids) -> None:
    import dataclasses

    sources = languages(ids)
    with pytest.raises(UserError) as error:
        run(make_config(*sources))
    message = str(error.value)
    assert "20 of 40 records" in message and "Of 20 the id came before" in message
    assert "give each source a `name`" in message and "`id_field: null`" in message
    # And it does help.
    fields = {"id_field": None} if ids else {}
    named = [dataclasses.replace(s, name=s.language, **fields) for s in sources]
    summary, _ = run(make_config(*named, run="named"))
    assert sum(summary["documents"].values()) == 40 and summary["rejected"] == 0
    json.dumps(summary)
