"""One small run from text to report, and what must hold of everything it wrote."""

import json
import shutil
import time
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pytest

from frame_jax import inspect
from frame_jax.config.file import load
from frame_jax.corpus.tokenizer import load_tokenizer
from frame_jax.curriculum.loader import BatchSource, make_loader
from frame_jax.curriculum.presets import expand_curriculum
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.curriculum.stages import resolve_curriculum
from frame_jax.evaluation.results import read_result
from frame_jax.main import main
from frame_jax.records import TokenReader
from frame_jax.run.directory import RunDirectory, list_parts, read_json
from frame_jax.training.phases import count_rows
from tests.integration.small_run import write_config, write_corpus

pytestmark = pytest.mark.slow
QUADRANTS = ("Q1", "Q2", "Q3", "Q4")
HOSTILE = (
    "</script><script>alert(1)</script> ",
    "\x1b[2J\x1b]0;title\x07 ",
    "\u202egnp.exe\u202c \u05d0\u05d1 ",
    "nul \x00 and \u2028 and \r ",
    "../../../passwd ",
)
HOSTILE_DOMAIN = "<img src=x onerror=alert(2)>\x1b[31m"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunDirectory]:
    root = tmp_path_factory.mktemp("pipeline")
    write_corpus(root / "corpus.jsonl")
    with (root / "corpus.jsonl").open("a", encoding="utf-8") as file:
        for number, text in enumerate(HOSTILE * 12):
            record = {"id": f"{text}{number}", "text": text * 9, "domain": HOSTILE_DOMAIN}
            file.write(json.dumps(record) + "\n")
    config = write_config(root)
    assert main(["--config", str(config)]) == 0
    return config, RunDirectory(root / "run")


def table(pattern: Path, columns: str = "*") -> list[tuple]:
    return duckdb.sql(f"select {columns} from read_parquet('{pattern}')").fetchall()


def test_every_file_of_the_contract_is_there(run) -> None:
    root = run[1].root
    for pattern in (
        "config.yaml",
        "tokenizer/tokenizer.json",
        "tokens/part-00000-of-00003.arrayrecord",
        "tokens/part-00002-of-00003.parquet",
        "tokens/rejected.jsonl",
        "reference/weak/model.json",
        "reference/weak/metrics.jsonl",
        "reference/strong/checkpoints/60",
        "scores/part-00001-of-00003.parquet",
        "quadrants/partition.json",
        "quadrants/assignment.parquet",
        *(f"quadrants/{quadrant}/part-00001-of-00002.arrayrecord" for quadrant in QUADRANTS),
        *(f"pretrain/{arm}/checkpoints" for arm in ("frame", "random")),
        *(f"pretrain/{arm}/metrics.jsonl" for arm in ("frame", "random")),
        *(f"pretrain/{arm}/tensorboard/events*" for arm in ("frame", "random")),
        *(f"evaluation/{arm}.json" for arm in ("frame", "random")),
        "report/index.html",
        "report/*.png",
        *(f"{unit}.json" for unit in ("tokenize", "score", "partition", "pretrain-frame")),
    ):
        assert list(root.glob(pattern)), pattern
    assert not list(root.rglob(".tmp-*"))


def test_every_document_is_tokenized_losslessly_and_scored_once(run) -> None:
    config, directory = run
    texts = {}
    for line in (config.parent / "corpus.jsonl").read_text("utf-8").splitlines():
        record = json.loads(line)
        texts[record["id"]] = record["text"]
    tokenizer = load_tokenizer(directory)
    split_of = {}
    for part in list_parts(directory.tokens, ".parquet"):
        reader = TokenReader(part.with_suffix(".arrayrecord"))
        for doc_id, row, split, tokens in table(part, "doc_id, row, split, tokens"):
            ids = reader.read([row])[0]
            assert len(ids) == tokens
            assert tokenizer.decode(ids.tolist()) == texts[doc_id]
            split_of[doc_id] = split
    assert split_of.keys() == texts.keys()

    scored = [row[0] for row in table(directory.scores / "*.parquet", "doc_id")]
    assert sorted(scored) == sorted(d for d, split in split_of.items() if split != "reference")
    counts = Counter(split_of.values())
    assert counts["held_out"] > 30 and counts["reference"] > 120


def test_ppl_and_pd_follow_from_the_stored_sums(run) -> None:
    scores = {row[0]: row[1:] for row in table(run[1].scores / "*.parquet")}
    assigned = table(run[1].assignment, "doc_id, ppl, pd")
    assert len(assigned) == len(scores)
    for doc_id, ppl, pd in assigned:
        predicted, weak, strong = scores[doc_id]
        weak_ppl, strong_ppl = np.exp(weak / predicted), np.exp(strong / predicted)
        assert ppl == pytest.approx(strong_ppl, rel=1e-9)
        assert pd == pytest.approx((weak_ppl - strong_ppl) / weak_ppl, rel=1e-9, abs=1e-12)


def test_quadrants_hold_the_same_tokens_in_every_group(run) -> None:
    rows = duckdb.sql(
        "select domain, quadrant, sum(tokens), max(tokens) "
        f"from read_parquet('{run[1].assignment}') "
        "where split = 'train' group by all"
    ).fetchall()
    for domain in ("prose", "code"):
        tokens = {q: t for d, q, t, _ in rows if d == domain}
        largest = max(biggest for d, _, _, biggest in rows if d == domain)
        assert tokens.keys() == set(QUADRANTS)
        # Whole documents are dealt, so a quadrant may be off by about one.
        assert max(tokens.values()) - min(tokens.values()) <= 2 * largest


def served_rows(config_path: Path, directory: RunDirectory, arm: str) -> list[bytes]:
    """Every row that the arm's loader serves, in order, without the padding."""
    config = load(config_path)
    parts = {q: list_parts(directory.quadrants / q, ".arrayrecord") for q in QUADRANTS}
    schedule = resolve_curriculum(
        expand_curriculum(config.curricula[arm], config.partition.axes),
        count_rows(parts),
        batch_size=16,
        sequence_length=64,
    )
    loader = make_loader(
        BatchSource(
            parts,
            SelectionMap(schedule, config.seed),
            batch_size=16,
            row_offsets=range(16),
            row_tokens=65,
            padding_id=load_tokenizer(directory).bos_id,
        )
    )
    rows = [row.astype("<u4").tobytes() for batch in loader for row in batch]
    return rows[: schedule.rows]


def test_both_arms_train_on_every_row_exactly_once(run) -> None:
    stored = Counter(
        row.tobytes()
        for quadrant in QUADRANTS
        for part in list_parts(run[1].quadrants / quadrant, ".arrayrecord")
        for row in TokenReader(part).read(range(len(TokenReader(part))))
    )
    frame, random = (served_rows(*run, arm) for arm in ("frame", "random"))
    assert Counter(frame) == stored and Counter(random) == stored
    assert frame != random
    for arm in ("frame", "random"):
        folder = run[1].pretrain(arm)
        records = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
        steps = read_json(folder / "curriculum.json")["steps"]
        assert steps == -(-stored.total() // 16)
        assert [record["step"] for record in records] == list(range(steps))


def test_frame_goes_from_q3_over_q4_and_q1_to_q2(run) -> None:
    description = read_json(run[1].pretrain("frame") / "curriculum.json")
    assert [stage["name"] for stage in description["stages"]] == ["Q3", "Q4", "Q1", "Q2"]
    records = [json.loads(line) for line in (run[1].pretrain("frame") / "metrics.jsonl").open()]
    for index, quadrant in enumerate(("Q3", "Q4", "Q1", "Q2")):
        middle = records[round(len(records) * (index + 0.5) / 4)]
        assert middle["mixture"][quadrant] > 0.8


def test_held_out_losses_of_both_arms_are_reported(run) -> None:
    for arm in ("frame", "random"):
        slices = read_result(run[1], arm).final.slices
        quadrants = {f"quadrant: {name}" for name in QUADRANTS}
        assert {"all", "domain: prose", "domain: code", *quadrants} <= set(slices)
    page = (run[1].report / "index.html").read_text("utf-8")
    assert "frame" in page and "random" in page
    assert "http://" not in page.replace("http://www.w3.org", "").split("<script")[0]


def test_hostile_text_is_shown_as_text_and_nothing_more(run, capsys) -> None:
    page = (run[1].report / "index.html").read_text("utf-8")
    assert "alert(1)" not in page  # of texts it shows none
    assert "alert(2)" in page and "<img src=x" not in page
    assert inspect.main([str(run[1].root), "--domain", HOSTILE_DOMAIN, "-n", "60"]) == 0
    assert inspect.main([str(run[1].root), "--domain", "none"]) == 2
    shown = "".join(capsys.readouterr())
    assert "alert(1)" in shown and "alert(2)" in shown and "\\x1b[31m" in shown
    assert not {"\x1b", "\x00", "\x07", "\u202e"} & set(shown)
    assert not list(run[0].parent.parent.rglob("*passwd*"))


def test_a_finished_run_does_nothing_quickly(run, capsys) -> None:
    files = {p: p.stat().st_mtime_ns for p in run[1].root.rglob("*") if p.is_file()}
    started = time.monotonic()
    assert main(["--config", str(run[0])]) == 0
    assert time.monotonic() - started < 15
    assert "nothing to do" in capsys.readouterr().err
    assert files == {p: p.stat().st_mtime_ns for p in run[1].root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("redo", [[], ["--redo", "report"]])
def test_changed_settings_are_refused_with_exit_code_2(run, capsys, redo: list[str]) -> None:
    """Before anything is removed that was to be made again."""
    assert main(["--config", str(run[0]), "--scoring.context=32", *redo]) == 2
    assert "scoring.context: 64 then, 32 now" in capsys.readouterr().err
    assert (run[1].report / "index.html").exists()


def test_an_arm_with_its_own_learning_rate_can_be_added_later(run, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(run[0].parent, root)
    constant = {"kind": "constant", "peak": 0.005, "warmup_fraction": 0.0}
    added = {"reverse": {"preset": "reverse", "lr_schedule": constant}}
    config = write_config(
        root, curricula={name: {"preset": name} for name in ("frame", "random")} | added
    )
    # The corpus has moved with the copy; everything else is as it was.
    text = config.read_text("utf-8").replace(
        str(root / "corpus.jsonl"), str(run[0].parent / "corpus.jsonl")
    )
    config.write_text(text, "utf-8")
    frame = (root / "run/pretrain/frame/metrics.jsonl").stat().st_mtime_ns
    assert main(["--config", str(config)]) == 0
    assert (root / "run/pretrain/frame/metrics.jsonl").stat().st_mtime_ns == frame
    assert "reverse" in (root / "run/report/index.html").read_text("utf-8")
    records = [json.loads(line) for line in (root / "run/pretrain/reverse/metrics.jsonl").open()]
    assert {round(record["learning_rate"], 9) for record in records} == {0.005}
