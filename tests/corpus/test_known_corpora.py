"""The lines of docs/corpora.md on records of the shape that each corpus has."""

import dataclasses
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from frame_jax.config.corpus import CorpusConfig, SourceConfig
from frame_jax.corpus.documents import Document
from frame_jax.corpus.parts import plan_parts
from tests.corpus.reading import read

PAGE = Path(__file__).parents[2] / "docs" / "corpora.md"
Row = tuple[str, str, str, str, str]  # id, text, source, domain, language


def sources(first_word: str) -> list[SourceConfig]:
    """The sources under the paragraph of the page that begins with a word."""
    block = re.search(rf"^{first_word}.*?```yaml\n(.*?)```", PAGE.read_text(), re.M | re.S)
    assert block is not None
    return [SourceConfig(**source) for source in yaml.safe_load(block[1])]


def lines(path: str, *records: dict) -> None:
    place = Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(record) + "\n" for record in records).encode()
    if path.endswith(".gz"):
        data = gzip.compress(data)
    elif path.endswith(".zst"):
        data = pa.compress(data, codec="zstd", asbytes=True)
    place.write_bytes(data)


def table(path: str, *records: dict) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(records)), path)


def the_pile() -> list[Row]:
    lines(
        "pile/train/00.jsonl.zst",
        {"text": "It is done", "meta": {"pile_set_name": "Pile-CC"}},
        {"text": "def f(): ...", "meta": {"pile_set_name": "Github"}},
    )
    return [
        ("00.jsonl.zst:1", "It is done", "00", "Pile-CC", "en"),
        ("00.jsonl.zst:2", "def f(): ...", "00", "Github", "en"),
    ]


def slim_pajama() -> list[Row]:
    name = "chunk1/example_train_0.jsonl.zst"
    lines(
        f"SlimPajama-627B/train/{name}",
        {"text": "one", "meta": {"redpajama_set_name": "RedPajamaC4"}},
        {"text": "two", "meta": {"redpajama_set_name": "RedPajamaArXiv"}},
    )
    return [
        (f"{name}:1", "one", "example_train_0", "RedPajamaC4", "en"),
        (f"{name}:2", "two", "example_train_0", "RedPajamaArXiv", "en"),
    ]


def c4() -> list[Row]:
    record = {"timestamp": "2019-04-25T12:57:54Z", "url": "https://example.org/a"}
    lines("c4/en/c4-train.00000-of-01024.json.gz", {"text": "one"} | record)
    lines("c4/en/c4-validation.00000-of-00008.json.gz", {"text": "not for training"} | record)
    name = "c4-zh.tfrecord-00000-of-01024.json.gz"
    lines(f"c4/multilingual/{name}", {"text": "一"} | record)
    return [
        ("c4/c4-train.00000-of-01024.json.gz:1", "one", "c4", "web", "en"),
        (f"mc4/{name}:1", "一", "mc4", "web", "zh"),
    ]


def fine_web() -> list[Row]:
    table(
        "fineweb/data/CC-MAIN-2024-10/000_00000.parquet",
        {
            "text": "a page",
            "id": "<urn:uuid:0d8a309d>",
            "dump": "CC-MAIN-2024-10",
            "url": "https://example.org",
            "date": "2024-02-20T00:00:00Z",
            "file_path": "s3://commoncrawl/x.warc.gz",
            "language": "en",
            "language_score": 0.97,
            "token_count": 2,
        },
    )
    return [("<urn:uuid:0d8a309d>", "a page", "CC-MAIN-2024-10", "web", "en")]


def dolma() -> list[Row]:
    lines(
        "dolma/cc_en_head-0000.json.gz",
        {
            "id": "http://example.org",
            "text": "a page",
            "source": "common-crawl",
            "added": "2023-04-11T09:57:03.044571+00:00",
            "created": "2020-01-17T12:48:45Z",
            "metadata": {"length": 6, "provenance": "cc_en_head-0000.json.gz:1"},
            "version": "v1",
        },
    )
    return [("http://example.org", "a page", "common-crawl", "common-crawl", "en")]


def the_stack() -> list[Row]:
    table(
        "the-stack/data/python/train-00000-of-00206.parquet",
        {
            "hexsha": "9a0b",
            "size": 12,
            "ext": "py",
            "lang": "Python",
            "max_stars_repo_licenses": ["MIT"],
            "content": "print(1)\n",
        },
    )
    return [("9a0b", "print(1)\n", "train-00000-of-00206", "code", "Python")]


def wikipedia() -> list[Row]:
    page = {"id": "12", "url": "https://example.org", "title": "Anarchism"}
    table("wikipedia/20231101.en/train-00000-of-00041.parquet", page | {"text": "one"})
    table("wikipedia/20231101.zh/train-00000-of-00006.parquet", page | {"text": "一"})
    return [
        ("enwiki/train-00000-of-00041.parquet:1", "one", "enwiki", "encyclopedia", "en"),
        ("zhwiki/train-00000-of-00006.parquet:1", "一", "zhwiki", "encyclopedia", "zh"),
    ]


def saved_dataset() -> list[Row]:
    """Streams of Arrow beside two files of JSON, as `Dataset.save_to_disk` leaves them."""
    folder = Path("my_dataset/train")
    folder.mkdir(parents=True)
    for k, text in enumerate(("one", "two")):
        rows = pa.table({"text": [text], "label": [k]})
        with pa.ipc.new_stream(str(folder / f"data-{k:05d}-of-00002.arrow"), rows.schema) as out:
            out.write_table(rows)
    with pa.ipc.new_stream(str(folder / "cache-0123456789abcdef.arrow"), rows.schema) as out:
        out.write_table(rows)
    for name in ("state.json", "dataset_info.json"):
        (folder / name).write_text(json.dumps({"x": 1}, indent=2))
    return [
        (f"data-{k:05d}-of-00002.arrow:1", text, f"data-{k:05d}-of-00002", "text", "en")
        for k, text in enumerate(("one", "two"))
    ]


CORPORA: dict[str, Callable[[], list[Row]]] = {
    "The Pile": the_pile,
    "SlimPajama": slim_pajama,
    "C4": c4,
    "FineWeb": fine_web,
    "Dolma": dolma,
    "The Stack": the_stack,
    "Wikipedia": wikipedia,
    "A folder that": saved_dataset,
}


@pytest.mark.parametrize("name", CORPORA)
def test_the_lines_of_the_page_read_the_corpus(tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = CORPORA[name]()
    found = [
        (d.id, d.text, d.source, d.domain, d.language)
        for source in sources(name)
        for d in documents(source)
    ]
    assert found == wanted


def documents(source: SourceConfig) -> list[Document]:
    chunks = plan_parts(CorpusConfig(sources=[source], parts=1))[0]
    records = [record for chunk in chunks for record in chunk.read_records()]
    assert all(isinstance(record, Document) for record in records), records
    return records  # type: ignore[return-value]


def test_slim_pajama_as_parquet_differs_in_the_kind_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    table(
        "SlimPajama-627B/train/a.parquet",
        {"text": "one", "meta": {"redpajama_set_name": "RedPajamaC4"}},
    )
    (source,) = sources("SlimPajama")
    (record,) = read(dataclasses.replace(source, kind="parquet"))
    assert isinstance(record, Document) and record.domain == "RedPajamaC4"


def test_a_folder_that_datasets_itself_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    texts = [f"text {k}" for k in range(50)]
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    found = read(SourceConfig(kind="arrow", path=str(tmp_path / "saved")))
    assert [d.text for d in found if isinstance(d, Document)] == texts
