"""A curriculum for other trainers is the one this run trains: same documents, order and lengths."""

import dataclasses
import importlib
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from frame_jax.config.corpus import CorpusConfig, SourceConfig
from frame_jax.config.curriculum import CurriculumConfig
from frame_jax.config.models import ModelConfig
from frame_jax.config.quadrants import PartitionConfig, RowsConfig
from frame_jax.config.run import RunConfig
from frame_jax.config.training import PretrainConfig, TrainingConfig
from frame_jax.corpus.tokenizer import load_tokenizer
from frame_jax.export.order.export import main
from frame_jax.export.order.formats import FORMATS
from frame_jax.export.order.plan import Trainer, make_plan, pieces, stages
from frame_jax.main import write_config
from frame_jax.quadrants.rows import write_cells
from frame_jax.records import TokenReader, write_tokens
from frame_jax.run.directory import RunDirectory, list_parts, part_name, read_json
from tests.arm import TEXT, write_tokenizer

CELLS = ("Q1", "Q2", "Q3", "Q4")
LENGTH, BATCH, DOCUMENTS, PARTS = 48, 4, 160, 2
CURRICULA = {
    "frame": CurriculumConfig(preset="frame", width=0.15),
    "hard": CurriculumConfig(preset="frame", transition="hard"),
    "twice": CurriculumConfig(preset="ppl_descending", epochs=2),
    "random": CurriculumConfig(preset="random"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[RunConfig, RunDirectory]:
    """A run directory as the partition phase leaves it, of short distinct documents."""
    directory = RunDirectory(tmp_path_factory.mktemp("order") / "run")
    write_tokenizer(directory)
    tokenizer = load_tokenizer(directory)
    config = RunConfig(
        run_directory=str(directory.root),
        corpus=CorpusConfig([SourceConfig("python_library")]),
        partition=PartitionConfig(rows=RowsConfig(sequence_length=LENGTH, parts=2)),
        pretrain=PretrainConfig(ModelConfig(), TrainingConfig(batch_rows=BATCH)),
        curricula=CURRICULA,
    )
    write_config(config, directory)
    rng = np.random.default_rng(0)
    lines = []
    for part in range(PARTS):
        with write_tokens(directory.tokens / part_name(part, PARTS, ".arrayrecord")) as writer:
            for row in range(DOCUMENTS // PARTS):
                number = part * DOCUMENTS // PARTS + row
                start = int(rng.integers(0, 3000))
                text = f"{number:04d} 四 {TEXT[start : start + int(rng.integers(5, 400))]}"
                ids = tokenizer.encode_batch([text])[0]
                writer.append(ids)
                lines.append(
                    {
                        "doc_id": f"d{number}",
                        "ppl": 1.0 + number,
                        "pd": 0.1,
                        "quadrant": CELLS[number % 4] if number % 10 else None,
                        "split": "held_out" if number % 9 == 0 else "train",
                        "source": "s",
                        "domain": "prose",
                        "language": "en",
                        "tokens": len(ids),
                        "bytes": len(text.encode()),
                        "part": part,
                        "row": row,
                    }
                )
    directory.quadrants.mkdir()
    pq.write_table(pa.Table.from_pylist(lines), directory.assignment)
    conditions = {cell: f"split = 'train' AND quadrant = '{cell}'" for cell in CELLS}
    write_cells(
        config.partition.rows, directory, directory.quadrants, [directory.assignment], conditions, 0
    )
    return config, directory


def text_of(directory: RunDirectory, part: int, row: int) -> np.ndarray:
    return TokenReader(list_parts(directory.tokens, ".arrayrecord")[part]).read([row])[0]


def first_rows(directory: RunDirectory, cell: str) -> dict[int, list[np.ndarray]]:
    """The documents that begin in each row of a cell, read off its files: {row: token ids}."""
    tokenizer = load_tokenizer(directory)
    found: dict[int, list[np.ndarray]] = {}
    before = 0
    for path in list_parts(directory.quadrants / cell, ".arrayrecord"):
        reader = TokenReader(path)
        stream = np.concatenate(reader.read(range(len(reader))))
        starts = np.flatnonzero(stream == tokenizer.bos_id)  # padding is BOS too, at the end
        for start in starts[: read_json(path.with_suffix(".json"))["documents"]]:
            stop = start + int(np.argmax(stream[start:] == tokenizer.eos_id))
            row = before + int(start) // (LENGTH + 1)
            found.setdefault(row, []).append(stream[start + 1 : stop])
        before += len(reader)
    return found


def export(directory: RunDirectory, out: Path, *options: str) -> None:
    assert main([str(directory.root), "--out", str(out), *options]) == 0
    assert (out / "NOTES.md").exists() and (out / "tokenizer" / "tokenizer.json").exists()
    assert not list(out.parent.glob(".tmp-*"))


@pytest.mark.parametrize("curriculum", ["frame", "twice"])
def test_documents_come_in_the_order_in_which_training_reads_them(
    run, tmp_path, curriculum
) -> None:
    config, directory = run
    export(directory, tmp_path / "out", "--curriculum", curriculum, "--to", "parquet")
    order = pq.read_table(tmp_path / "out" / "order.parquet").to_pylist()
    assert [line["rank"] for line in order] == list(range(len(order)))
    plan = make_plan(config, directory, curriculum)
    begins = {cell: first_rows(directory, cell) for cell in CELLS}
    lines = iter(order)
    stops = {stage.name: stage.stop for stage in plan.schedule.stages}
    for place in range(plan.schedule.epoch_rows):
        cell, row = plan.selection[place]
        for ids in begins[CELLS[cell]].get(row, []):
            line = next(lines)
            np.testing.assert_array_equal(ids, text_of(directory, line["part"], line["row"]))
            assert line["quadrant"] == CELLS[cell] and line["step"] == place // BATCH
            assert line["stage"] == next(n for n, s in stops.items() if place < s)
            assert 0 <= line["weight"] <= 1
    assigned = pq.read_table(directory.assignment).to_pylist()
    training = {d["doc_id"] for d in assigned if d["split"] == "train" and d["quadrant"]}
    assert Counter(line["doc_id"] for line in order) == Counter(training)


def test_weights_are_those_of_the_stage_away_from_transitions(run, tmp_path) -> None:
    _, directory = run
    export(directory, tmp_path / "out", "--curriculum", "hard", "--to", "parquet")
    order = pq.read_table(tmp_path / "out" / "order.parquet").to_pylist()
    assert [line["stage"] for line in order] == sorted(
        (line["stage"] for line in order), key=["Q3", "Q4", "Q1", "Q2"].index
    )
    assert all(line["quadrant"] == line["stage"] for line in order)
    assert [line["weight"] for line in order] == pytest.approx([1.0] * len(order))


@pytest.mark.parametrize("batch", [(4, 48), (6, 32), (1, 48)])
def test_stages_hold_the_same_tokens_in_another_trainer_s_steps(run, batch) -> None:
    config, directory = run
    for curriculum in CURRICULA:
        plan = make_plan(config, directory, curriculum)
        trainer = Trainer(*batch, "data", ".jsonl")
        tokens = plan.schedule.rows * LENGTH
        for spans in (
            stages(plan, trainer, smooth=True),
            stages(plan, trainer, smooth=False),
            pieces(plan, trainer, 40),
        ):
            assert spans[0].first == 0
            assert all(a.stop == b.first for a, b in itertools.pairwise(spans))
            assert abs(spans[-1].stop * batch[0] * batch[1] - tokens) <= batch[0] * batch[1]
            total = np.zeros(4)
            for span in spans:
                assert sum(span.mixture.values()) == pytest.approx(1, abs=3e-4)
                total += (span.stop - span.first) * np.array(list(span.mixture.values()))
            # Over the run, each quadrant gets what it holds.
            held = np.array(plan.schedule.available) / sum(plan.schedule.available)
            np.testing.assert_allclose(total / spans[-1].stop, held, atol=0.02)


def test_levanter_follows_the_schedule(run, tmp_path) -> None:
    _, directory = run
    export(directory, tmp_path / "out", "--to", "levanter", "--shards", "jsonl")
    value = yaml.safe_load((tmp_path / "out" / "levanter.yaml").read_text())
    data, trainer = value["data"], value["trainer"]
    weights = data["train_weights"]
    assert weights[0][0] == 0 and len(weights) > 8
    for step, mixture in weights:
        assert step * trainer["train_batch_size"] % data["mixture_block_size"] == 0
        assert mixture.keys() == data["components"].keys() == set(CELLS)
    assert [max(m, key=m.get) for _, m in (weights[0], weights[-1])] == ["Q3", "Q2"]
    for cell, component in data["components"].items():
        (url,) = component["source"]["train_urls"]
        assert list((tmp_path / "out").glob(url)), cell


def test_trainers_that_restart_a_stage_s_data_get_hard_stages(run) -> None:
    plan = make_plan(*run, "frame")
    trainer = Trainer(BATCH, LENGTH, "gs://bucket", ".jsonl")
    ends = [span.stop for span in stages(plan, trainer, smooth=False)]
    blends = FORMATS["megatron"](plan, trainer)
    for number, cell in enumerate(("Q3", "Q4", "Q1", "Q2"), 1):
        assert blends[f"blend-{number:02d}.txt"].split() == [
            "1.0",
            f"gs://bucket/{cell}_text_document",
        ]
    transitions = ",".join(map(str, ends[:-1]))
    assert blends["train.sh"].count(f"--phase-transition-iterations {transitions} ") == 4
    # Megatron-LM compares phases with --train-samples, which --train-iters leaves None.
    assert blends["train.sh"].count(f"--train-samples {ends[-1] * BATCH} ") == 4
    assert "--train-iters" not in blends["train.sh"]
    config = yaml.safe_load(FORMATS["nanotron"](plan, trainer)["nanotron.yaml"])
    begins = [stage["start_training_step"] for stage in config["data_stages"]]
    assert begins == [1, *(end + 1 for end in ends[:-1])]
    assert config["data_stages"][0]["data"]["dataset"]["dataset_folder"] == ["gs://bucket/Q3"]
    assert config["tokens"]["train_steps"] == ends[-1]


@pytest.mark.parametrize(("curriculum", "batch_rows"), [("twice", 4), ("hard", 60)])
def test_nanotron_accepts_the_stages(run, curriculum, batch_rows) -> None:
    """Its rules: unique names, rising first steps of which the lowest is 1, weights by folder."""
    plan = make_plan(*run, curriculum)
    trainer = Trainer(batch_rows, LENGTH, "data", ".jsonl")
    config = yaml.safe_load(FORMATS["nanotron"](plan, trainer)["nanotron.yaml"])
    found = config["data_stages"]
    assert len({stage["name"] for stage in found}) == len(found)
    begins = [stage["start_training_step"] for stage in found]
    assert begins[0] == 1 and begins == sorted(set(begins))
    assert begins[-1] <= config["tokens"]["train_steps"]
    for dataset in (stage["data"]["dataset"] for stage in found):
        assert len(dataset["dataset_folder"]) == len(dataset["dataset_weights"])


def test_maxtext_finds_every_component_in_every_stage(run) -> None:
    plan = make_plan(*run, "frame")
    files = FORMATS["maxtext"](plan, Trainer(BATCH, LENGTH, "data", ".arrayrecord"))
    mixtures = [json.loads(text) for name, text in files.items() if name.startswith("mixture")]
    assert len(mixtures) == 4
    for mixture, cell in zip(mixtures, ("Q3", "Q4", "Q1", "Q2"), strict=True):
        assert mixture.keys() == set(CELLS)
        assert all(component["weight"] > 0 for component in mixture.values())
        assert max(mixture, key=lambda name: mixture[name]["weight"]) == cell


def read_shard(path: Path) -> list[str]:
    if path.suffix == ".jsonl":
        return [json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()]
    if path.suffix == ".parquet":
        return pq.read_table(path)["text"].to_pylist()
    protos = importlib.import_module("tensorflow_datasets.proto.tf_example_generated_pb2")
    from array_record.python.array_record_module import ArrayRecordReader

    records = ArrayRecordReader(str(path)).read_all()
    examples = [protos.Example.FromString(record) for record in records]
    return [e.features.feature["text"].bytes_list.value[0].decode("utf-8") for e in examples]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrayrecord"])
def test_shards_hold_each_quadrant_s_texts(run, tmp_path, kind, monkeypatch) -> None:
    from frame_jax.export.order import shards

    monkeypatch.setattr(shards, "SHARD_BYTES", 2000)
    monkeypatch.setattr(shards, "DOCUMENTS_AT_ONCE", 5)
    _, directory = run
    export(directory, tmp_path / "out", "--to", "parquet", "--shards", kind)
    tokenizer = load_tokenizer(directory)
    assigned = pq.read_table(directory.assignment).to_pylist()
    for cell in CELLS:
        files = sorted((tmp_path / "out" / "data" / cell).iterdir())
        assert len(files) > 1
        texts = [text for file in files for text in read_shard(file)]
        wanted = [
            tokenizer.decode(text_of(directory, d["part"], d["row"]))
            for d in assigned
            if d["split"] == "train" and d["quadrant"] == cell
        ]
        assert Counter(texts) == Counter(wanted)
        assert texts != wanted  # shuffled


def test_what_cannot_be_exported_is_said(run, tmp_path, capsys) -> None:
    _, directory = run
    root, out = str(directory.root), str(tmp_path / "out")
    for arguments, message in (
        ([root, "--curriculum", "nothing", "--to", "levanter"], "there are: frame, hard"),
        ([root, "--to", "maxtext", "--shards", "jsonl"], "choose --shards arrayrecord"),
        ([str(tmp_path), "--to", "levanter"], "up to partition first"),
        ([root, "--to", "nanotron", "--batch_rows", "100000"], "lower --batch_rows"),
    ):
        assert main([*arguments, "--out", out]) == 2
        assert message in capsys.readouterr().err
        assert not Path(out).exists()


def test_a_shortened_run_leaves_out_what_it_does_not_reach(run, tmp_path) -> None:
    config, directory = run
    other = RunDirectory(tmp_path / "run")
    other.root.mkdir()
    for name in ("tokens", "tokenizer", "quadrants"):
        (other.root / name).symlink_to(directory.root / name)
    training = dataclasses.replace(config.pretrain.training, steps=20)
    pretrain = dataclasses.replace(config.pretrain, training=training)
    write_config(
        dataclasses.replace(config, pretrain=pretrain, run_directory=str(other.root)), other
    )
    export(other, tmp_path / "out", "--curriculum", "hard", "--to", "parquet")
    order = pq.read_table(tmp_path / "out" / "order.parquet").to_pylist()
    assert 0 < len(order) < DOCUMENTS * 0.7
    assert max(line["step"] for line in order) < 20
