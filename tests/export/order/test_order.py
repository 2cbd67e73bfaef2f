"""A curriculum for other trainers is the one this run trains: same documents, order and lengths."""

import ast
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
from frame_jax.curriculum.loader import BatchSource, make_loader
from frame_jax.export.order.trial_order import (
    Trainer,
    make_trial_order,
    mixture_spans,
    round_to_total,
    stage_spans,
)
from frame_jax.export_order import FORMATS, main
from frame_jax.main import write_config
from frame_jax.quadrants.rows import write_quadrant_rows
from frame_jax.records import TokenReader, write_tokens
from frame_jax.run.directory import RunDirectory, list_parts, part_name, read_json
from tests.arm import TEXT, write_tokenizer

QUADRANTS = ("Q1", "Q2", "Q3", "Q4")
LENGTH, BATCH, DOCUMENTS, PARTS = 48, 4, 160, 2
CURRICULA = {
    "frame": CurriculumConfig(preset="frame", width=0.15),
    "hard": CurriculumConfig(preset="frame", transition="hard"),
    "twice": CurriculumConfig(preset="ppl_descending", epochs=2),
    "random": CurriculumConfig(preset="random"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[RunConfig, RunDirectory]:
    return make_run(tmp_path_factory.mktemp("order") / "run")


def make_run(root: Path) -> tuple[RunConfig, RunDirectory]:
    """A run directory as the partition phase leaves it, of short distinct documents, of which a
    fifth is read twice and a fifth not at all."""
    directory = RunDirectory(root)
    write_tokenizer(directory)
    tokenizer = load_tokenizer(directory)
    config = RunConfig(
        run_directory=str(directory.root),
        corpus=CorpusConfig([SourceConfig("python_library")]),
        partition=PartitionConfig(rows=RowsConfig(sequence_length=LENGTH, parts=2)),
        pretrain=PretrainConfig(ModelConfig(), training=TrainingConfig(batch_size=BATCH)),
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
                        "quadrant": QUADRANTS[number % 4] if number % 10 else None,
                        "split": "held_out" if number % 9 == 0 else "train",
                        "copies": (1, 2, 0, 1, 1)[number % 5] if number % 10 and number % 9 else 0,
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
    conditions = {
        quadrant: f"split = 'train' AND quadrant = '{quadrant}'" for quadrant in QUADRANTS
    }
    rows, tables = config.partition.rows, [directory.assignment]
    write_quadrant_rows(rows, directory, directory.quadrants, tables, conditions, 0, config.workers)
    return config, directory


def text_of(directory: RunDirectory, part: int, row: int) -> np.ndarray:
    return TokenReader(list_parts(directory.tokens, ".arrayrecord")[part]).read([row])[0]


def first_rows(directory: RunDirectory, quadrant: str) -> dict[int, list[np.ndarray]]:
    """The documents that begin in each row of a quadrant, read off its files: {row: token ids}."""
    tokenizer = load_tokenizer(directory)
    found: dict[int, list[np.ndarray]] = {}
    before = 0
    for path in list_parts(directory.quadrants / quadrant, ".arrayrecord"):
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
    export(directory, tmp_path / "out", "--trial", curriculum, "--to", "parquet")
    order = pq.read_table(tmp_path / "out" / "order.parquet").to_pylist()
    assert [line["rank"] for line in order] == list(range(len(order)))
    plan = make_trial_order(config, directory, curriculum)
    begins = {quadrant: first_rows(directory, quadrant) for quadrant in QUADRANTS}
    lines = iter(order)
    stops = {stage.name: stage.stop for stage in plan.schedule.stages}
    for place in range(plan.schedule.epoch_rows):
        quadrant, row = plan.selection[place]
        for ids in begins[QUADRANTS[quadrant]].get(row, []):
            line = next(lines)
            np.testing.assert_array_equal(ids, text_of(directory, line["part"], line["row"]))
            assert line["quadrant"] == QUADRANTS[quadrant] and line["step"] == place // BATCH
            assert line["stage"] == next(n for n, s in stops.items() if place < s)
            assert 0 <= line["weight"] <= 1
    assigned = pq.read_table(directory.assignment).to_pylist()
    training = {d["doc_id"]: d["copies"] for d in assigned if d["copies"]}
    assert Counter(line["doc_id"] for line in order) == Counter(training)
    assert set(training.values()) == {1, 2}


def test_weights_are_those_of_the_stage_away_from_transitions(run, tmp_path) -> None:
    _, directory = run
    export(directory, tmp_path / "out", "--trial", "hard", "--to", "parquet")
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
        plan = make_trial_order(config, directory, curriculum)
        trainer = Trainer(*batch, "data", ".jsonl")
        tokens = plan.schedule.rows * LENGTH
        for spans in (
            stage_spans(plan, trainer, smooth=True),
            stage_spans(plan, trainer, smooth=False),
            mixture_spans(plan, trainer, 40, 1),
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


@pytest.mark.parametrize("curriculum", list(CURRICULA))
def test_levanter_follows_the_schedule(run, tmp_path, curriculum) -> None:
    config, directory = run
    options = ("--trial", curriculum, "--to", "levanter", "--shards", "jsonl")
    export(directory, tmp_path / "out", *options, "--batch_size", "12")
    text = (tmp_path / "out" / "levanter.yaml").read_text()
    assert "-0.0" not in text
    value = yaml.safe_load(text)
    data, trainer, block = value["data"], value["trainer"], value["data"]["mixture_block_size"]
    assert value["train_seq_len"] == LENGTH and block == 4
    weights = data["train_weights"]
    steps = [step for step, _ in weights] + [trainer["num_train_steps"]]
    assert steps[0] == 0 and trainer["train_batch_size"] % block == 0
    plan = make_trial_order(config, directory, curriculum)
    asked = np.zeros(4)
    for (_, mixture), (first, stop) in zip(weights, itertools.pairwise(steps), strict=True):
        rows = np.array([mixture[quadrant] * block for quadrant in QUADRANTS])
        assert rows.sum() == block and (rows == rows.astype(int)).all()
        asked += rows * (stop - first) * 12 // block
    # Rounding to whole rows of a block costs no quadrant more than a piece's rounding.
    wanted = np.array(plan.schedule.cumulative(np.array([plan.schedule.epoch_rows]))[0])
    wanted *= plan.schedule.epochs * 12 * steps[-1] / plan.schedule.rows
    np.testing.assert_allclose(asked, wanted, atol=12)
    for quadrant, component in data["components"].items():
        (url,) = component["source"]["train_urls"]
        assert list((tmp_path / "out").glob(url)), quadrant


def test_rounding_carries_its_error() -> None:
    """A share far below a block's resolution still gets its rows over the run."""
    given = np.zeros(3)
    for piece in range(1, 201):
        rows = round_to_total(np.array([0.01, 0.3, 0.69]) * 16 * piece - given, 16)
        assert rows.sum() == 16 and (rows >= 0).all()
        given += rows
    np.testing.assert_allclose(given, np.array([0.01, 0.3, 0.69]) * 3200, atol=1)


def test_trainers_that_restart_a_stage_s_data_get_hard_stages(run) -> None:
    plan = make_trial_order(*run, "frame")
    trainer = Trainer(BATCH, LENGTH, "gs://bucket", ".jsonl")
    ends = [span.stop for span in stage_spans(plan, trainer, smooth=False)]
    blends = FORMATS["megatron"].files(plan, trainer)
    for number, quadrant in enumerate(("Q3", "Q4", "Q1", "Q2"), 1):
        assert blends[f"blend-{number:02d}.txt"].split() == [
            "1.0",
            f"gs://bucket/{quadrant}_text_document",
        ]
    transitions = ",".join(map(str, ends[:-1]))
    assert blends["train.sh"].count(f"--phase-transition-iterations {transitions} ") == 4
    # Megatron-LM compares phases with --train-samples, which --train-iters leaves None.
    assert blends["train.sh"].count(f"--train-samples {ends[-1] * BATCH} ") == 4
    assert "--train-iters" not in blends["train.sh"]
    assert blends["train.sh"].count("--tokenizer-model tokenizer ") == 4
    for name in ("train.sh", "tokenize.sh"):  # every path is one seen from the script's folder
        assert blends[name].splitlines()[2] == 'cd "$(dirname "$0")"'
    assert "--workers" in blends["tokenize.sh"]


def test_maxtext_finds_every_component_in_every_stage(run) -> None:
    plan = make_trial_order(*run, "frame")
    files = FORMATS["maxtext"].files(plan, Trainer(BATCH, LENGTH, "data", ".arrayrecord"))
    mixtures = [json.loads(text) for name, text in files.items() if name.startswith("mixture")]
    assert len(mixtures) == 4
    for mixture, quadrant in zip(mixtures, ("Q3", "Q4", "Q1", "Q2"), strict=True):
        assert mixture.keys() == set(QUADRANTS)
        assert all(component["weight"] > 0 for component in mixture.values())
        assert max(mixture, key=lambda name: mixture[name]["weight"]) == quadrant
    for setting in ("use_truncation=false", "packing=true", "add_bos=true", "add_eos=true"):
        assert files["train.sh"].count(f" {setting} ") == 4
    assert files["train.sh"].count(" num_epoch=2 ") == 4


def test_maxtext_s_documents_give_the_stage_s_share_of_tokens(run) -> None:
    """It draws documents, whose mean length differs from quadrant to quadrant."""
    plan = make_trial_order(*run, "random")
    files = FORMATS["maxtext"].files(plan, Trainer(BATCH, LENGTH, "data", ".arrayrecord"))
    mixture = json.loads(files["mixture-01.json"])
    tokens = {
        quadrant: mixture[quadrant]["weight"]
        * plan.counts[quadrant]["tokens"]
        / plan.counts[quadrant]["documents"]
        for quadrant in QUADRANTS
    }
    (span,) = stage_spans(plan, Trainer(BATCH, LENGTH, "data", ""), smooth=True)
    for quadrant in QUADRANTS:
        share = tokens[quadrant] / sum(tokens.values())
        assert share == pytest.approx(span.mixture[quadrant], abs=1e-4)


def read_mds(folder: Path) -> np.ndarray:
    """Rows of an MDS folder, read as its format is written down."""
    rows = []
    for shard in json.loads((folder / "index.json").read_text())["shards"]:
        data = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"] < 2**32
        (count,) = np.frombuffer(data[:4], "<u4")
        offsets = np.frombuffer(data[4 : 4 * (count + 2)], "<u4")
        assert count == shard["samples"] and offsets[-1] == len(data)
        settings = json.loads(data[4 * (count + 2) : offsets[0]])
        assert settings.items() <= shard.items()
        rows += [np.frombuffer(data[a:b], "<i4") for a, b in itertools.pairwise(offsets)]
    return np.stack(rows)


@pytest.mark.parametrize(("to", "kind"), [("olmo_core", "npy"), ("mosaicml", "mds")])
@pytest.mark.parametrize("curriculum", ["frame", "twice"])
def test_rows_come_as_the_loader_here_reads_them(
    run, tmp_path, to, kind, curriculum, monkeypatch
) -> None:
    from frame_jax.export.order import shards

    monkeypatch.setattr(shards, "ROW_BYTES", 7 * 4 * (LENGTH + 1))
    config, directory = run
    out = tmp_path / "out"
    export(directory, out, "--to", to, "--shards", kind, "--trial", curriculum)
    tree = ast.parse((out / "order.py").read_text("utf-8"))
    (folders,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FOLDERS"
    ]
    stage_rows = []
    for folder in folders:
        if kind == "mds":
            stage_rows.append(read_mds(out / "data" / folder))
        else:
            files = sorted((out / "data" / folder).iterdir())
            assert len(files) > 1
            ids = np.concatenate([np.fromfile(file, "<u4") for file in files])
            stage_rows.append(ids.reshape(-1, LENGTH + 1))
    plan = make_trial_order(config, directory, curriculum)
    assert [len(rows) for rows in stage_rows] == np.diff(
        plan.schedule.boundaries, prepend=0
    ).tolist()
    parts = {c: list_parts(directory.quadrants / c, ".arrayrecord") for c in QUADRANTS}
    loader = make_loader(
        BatchSource(
            parts,
            plan.selection,
            batch_size=1,
            row_offsets=[0],
            row_tokens=LENGTH + 1,
            padding_id=0,
        )
    )
    np.testing.assert_array_equal(np.concatenate(stage_rows), np.concatenate(list(loader)))


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
    for quadrant in QUADRANTS:
        files = sorted((tmp_path / "out" / "data" / quadrant).iterdir())
        assert len(files) > 1
        texts = [text for file in files for text in read_shard(file)]
        wanted = [
            tokenizer.decode(text_of(directory, d["part"], d["row"]))
            for d in assigned
            if d["quadrant"] == quadrant
            for _ in range(d["copies"])
        ]
        assert Counter(texts) == Counter(wanted)
        assert texts != wanted  # shuffled


@pytest.mark.slow
def test_what_cannot_be_exported_is_said(run, tmp_path, capsys) -> None:
    _, directory = run
    root, out = str(directory.root), str(tmp_path / "out")
    for arguments, message in (
        ([root, "--trial", "nothing", "--to", "levanter"], "there are: frame, hard"),
        ([root, "--to", "maxtext", "--shards", "jsonl"], "choose --shards arrayrecord"),
        ([str(tmp_path), "--to", "levanter"], "up to partition first"),
        ([root, "--to", "levanter", "--batch_size", "100000"], "lower --batch_size"),
        ([root, "--to", "olmo_core", "--sequence_length", "64"], "leave out --sequence_length"),
        ([root, "--to", "parquet", "--shards", "mds"], "choose --shards jsonl or"),
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
    export(other, tmp_path / "out", "--trial", "hard", "--to", "parquet")
    order = pq.read_table(tmp_path / "out" / "order.parquet").to_pylist()
    assert 0 < len(order) < DOCUMENTS * 0.7
    assert max(line["step"] for line in order) < 20


@pytest.mark.parametrize(
    ("data", "written"), [("~/x/", "HOME/x"), ("gs://b/x", "gs://b/x"), ("./x", "./x")]
)
def test_a_home_folder_is_written_out_where_nobody_expands_it(
    run, tmp_path, monkeypatch, data, written
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written = written.replace("HOME", str(tmp_path))
    command = [str(run[1].root), "--to", "megatron", f"--data={data}"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert f'cat "{written}/$quadrant"/*' in (tmp_path / "out/tokenize.sh").read_text()
    assert f" {written}/Q3_text_document" in (tmp_path / "out/blend-01.txt").read_text()
