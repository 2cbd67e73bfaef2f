"""A run directory that follows the contract between phases, made up in a second."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from frame_jax.config.corpus import CorpusConfig, SourceConfig
from frame_jax.config.curriculum import CurriculumConfig
from frame_jax.config.models import ModelConfig
from frame_jax.config.run import RunConfig
from frame_jax.evaluation.results import (
    HeldOutLoss,
    TaskScore,
    TrialResult,
    WeightsResult,
    scores_folder,
    write_result,
)
from frame_jax.models.transformer import Decoder, write_description
from frame_jax.records import write_tokens
from frame_jax.run.directory import RunDirectory, part_name, write_json
from frame_jax.run.partition_record import (
    BinStart,
    GroupRecord,
    PartitionRecord,
    QuadrantContents,
    ThinGroups,
    Thresholds,
)
from frame_jax.run.trial_record import (
    StageRecord,
    TrialRecord,
    load_trial_record,
    write_trial_record,
)

QUADRANTS = ("Q1", "Q2", "Q3", "Q4")
DOMAINS = (("code", "python"), ("prose", "en"), ("prose", "zh"))
PARTS = 2
SEQUENCE_LENGTH, BATCH_ROWS = 64, 8
HOSTILE_TEXT = (
    "</script><script>window.stolen = 1</script>\n<img src=x onerror='window.stolen = 1'>\n"
    "<!-- </pre></details></body> & &amp; \u2028 ]]> 混沌初開"
)
PRESETS: dict[str, Any] = {"random_again": "random_again"}
STAGES = {
    "random_again": ["Q1+Q2+Q3+Q4"],
    "random": ["Q1+Q2+Q3+Q4"],
    "frame": ["Q3", "Q4", "Q1", "Q2"],
    "pd_ascending": ["Q1+Q3", "Q2+Q4"],
}


def make_config(root: Path, arms: list[str], seeds: int = 1) -> RunConfig:
    return RunConfig(
        run_directory=str(root),
        corpus=CorpusConfig(sources=[SourceConfig(kind="python_library", domain="<b>code</b>")]),
        curricula={arm: CurriculumConfig(preset=PRESETS.get(arm, arm)) for arm in arms},
        seeds=seeds,
    )


def write_tokenizer(directory: RunDirectory) -> tokenizers.Tokenizer:
    """One token a byte, then BOS and EOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", "<eos>"])
    directory.tokenizer.parent.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory.tokenizer))
    write_json(
        directory.tokenizer.with_name("special_tokens.json"),
        {"bos_id": 256, "eos_id": 257, "vocab_size": 258},
    )
    return backend


def write_documents(directory: RunDirectory, documents: int, text: str) -> list[dict[str, Any]]:
    """Token shards and the assignment; returns its rows."""
    backend = write_tokenizer(directory)
    generator = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for part in range(PARTS):
        path = directory.tokens / part_name(part, PARTS, ".arrayrecord")
        mine: list[dict[str, Any]] = []
        with write_tokens(path) as writer:
            for row in range(documents // PARTS):
                index = part * documents + row
                domain, language = DOMAINS[index % len(DOMAINS)]
                content = f"document {index}: {text}\n" * int(generator.integers(1, 12))
                ids = backend.encode(content, add_special_tokens=False).ids
                writer.append(ids)
                mine.append(
                    {
                        "doc_id": f"<i>{domain}/{index}/{'a_very_long_name' * 8}</i>",
                        "part": part,
                        "row": row,
                        "split": "held_out" if index % 5 == 0 else "train",
                        "source": "made & up",
                        "domain": domain,
                        "language": language,
                        "tokens": len(ids),
                        "bytes": len(content.encode()),
                    }
                )
        pq.write_table(pa.Table.from_pylist(mine), path.with_suffix(".parquet"))
        rows += mine
    for row in rows:
        row["ppl"] = float(np.exp(generator.normal(3.0 + 0.3 * len(row["language"]), 0.6)))
        row["pd"] = float(generator.normal(0.2, 0.1))
        row["quadrant"] = QUADRANTS[2 * (row["ppl"] > 30) + (row["pd"] > 0.2)]
        row["copies"] = int(row["split"] == "train")
    rows[0] |= {"ppl": None, "pd": None, "quadrant": None, "copies": 0}
    directory.quadrants.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), directory.assignment)
    return rows


def make_partition(**changes: Any) -> PartitionRecord:
    """The record of a partition of `DOMAINS`, but for `changes`."""
    starts = [BinStart(30.0, "")], [[BinStart(0.2, "")]] * 2
    groups = [
        GroupRecord(domain=d, language=v, thresholds=Thresholds("group", *starts), quadrants={})
        for d, v in DOMAINS
    ]
    contents = QuadrantContents(10, 1000, 2, 20.0, None)
    record = PartitionRecord(
        ppl_model="strong",
        mode="nested",
        axes={"ppl": 2, "pd": 2},
        names=("PPL", "PD"),
        group_by=("domain", "language"),
        without_quadrant={"train": {}, "held_out": {}},
        thin_groups=ThinGroups(0, 0),
        tied={"ppl": 0.0, "pd": 0.0},
        quadrants=dict.fromkeys(QUADRANTS, contents),
        groups=tuple(groups),
    )
    return dataclasses.replace(record, **changes)


def write_arm(directory: RunDirectory, trial: str, steps: int) -> None:
    """`metrics.jsonl` and `curriculum.json`: a loss that falls with the step and by the stage."""
    folder, arm = directory.pretrain(trial), trial.split("-")[0]
    folder.mkdir(parents=True, exist_ok=True)
    names = STAGES[arm]
    edges = [round(steps * i / len(names)) for i in range(len(names) + 1)]
    kept = sorted({*edges, *(round(steps * i / 8) for i in range(9))})
    record = TrialRecord(
        steps,
        BATCH_ROWS,
        SEQUENCE_LENGTH,
        rows={quadrant: steps * BATCH_ROWS // 4 for quadrant in QUADRANTS},
        kept_steps=tuple(kept),
        tail_steps=(),
        stages=tuple(
            StageRecord(name, start * BATCH_ROWS, stop * BATCH_ROWS, start, stop)
            for name, start, stop in zip(names, edges, edges[1:], strict=False)
        ),
    )
    write_trial_record(folder, record)
    write_description(folder, Decoder(ModelConfig(), vocab_size=258))
    tokens = BATCH_ROWS * SEQUENCE_LENGTH
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(steps):
            stage = min(step * len(names) // steps, len(names) - 1)
            present = names[stage].split("+")
            seconds = None if step == 0 else 0.5 + 0.1 * math.sin(step)
            record = {
                "step": step,
                "tokens": (step + 1) * tokens,
                "loss": 3 + 4 * math.exp(-8 * step / steps) - 0.3 * stage + 0.05 * math.sin(step),
                "grad_norm": 1.0 + (step * len(names) % steps < steps / 50),
                "update_norm": 0.01,
                "learning_rate": 1e-3,
                "stage": stage,
                "mixture": {q: (q in present) / len(present) for q in QUADRANTS},
                "seconds": seconds,
                "tokens_per_second": None if seconds is None else tokens / seconds,
                "mfu": None if arm == "random" or seconds is None else 0.2 / seconds,
                "goodput": 0.5 * step / steps,
            }
            file.write(json.dumps(record) + "\n")


OFFSETS = {"frame": 0.0, "pd_ascending": 0.05, "random": 0.1, "random_again": 0.1}


def write_evaluation(
    directory: RunDirectory, trial: str, rows: list[dict[str, Any]], seed: int = 0
) -> None:
    """Held-out losses that fall with the step; every arm has its own, and each seed moves it."""
    record = load_trial_record(directory.pretrain(trial))
    held_out = [row for row in rows if row["split"] == "held_out"]
    arm = trial.split("-")[0]
    offset = OFFSETS[arm]
    if seed:  # of the seed, for all arms alike, and of the arm under the seed
        offset += float(np.random.default_rng(seed).normal(0, 0.2))
        offset += float(np.random.default_rng([seed, list(STAGES).index(arm)]).normal(0, 0.004))
    generator = np.random.default_rng(1)
    noise = generator.normal(0, 0.02, len(held_out))
    checkpoints = []
    for step in record.kept_steps:
        level = 3 + offset + math.exp(-4 * step / record.steps)
        scored = [
            {
                "doc_id": row["doc_id"],
                "predicted_tokens": row["tokens"],
                "nll": row["tokens"] * (level + extra),
            }
            for row, extra in zip(held_out, noise * (1 + offset), strict=True)
        ]
        folder = scores_folder(directory, trial, str(step))
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(scored), folder / part_name(0, 1, ".parquet"))

        def measured(
            dimension: str | None = None,
            value: str | None = None,
            scored: list[dict[str, Any]] = scored,
        ) -> HeldOutLoss:
            chosen = [
                (row, score)
                for row, score in zip(held_out, scored, strict=True)
                if dimension is None or row[dimension] == value
            ]
            nll = sum(score["nll"] for _, score in chosen)
            tokens = sum(row["tokens"] for row, _ in chosen)
            size = sum(row["bytes"] for row, _ in chosen)
            return HeldOutLoss(
                len(chosen), tokens, size, nll, nll / tokens, nll / size / math.log(2)
            )

        slices = {"all": measured()}
        for dimension in ("domain", "language", "quadrant"):
            values = sorted({row[dimension] for row in held_out if row[dimension] is not None})
            slices |= {f"{dimension}: {value}": measured(dimension, value) for value in values}
        tokens = step * record.tokens_per_step
        checkpoints.append(WeightsResult(str(step), (step,), step, tokens, slices))
    tasks = task_scores(record, OFFSETS[arm])
    write_result(directory, TrialResult(trial, tuple(checkpoints), tasks=tuple(tasks)))


def task_scores(record: TrialRecord, offset: float) -> list[TaskScore]:
    """`letters` at every stage end, learned by the end of the run; `cloze` at the last, a guess."""
    ends: dict[int, list[str]] = {}
    for stage in record.stages:
        ends.setdefault(stage.last_step, []).append(stage.name)

    def score(task: str, step: int, items: int, accuracy: float) -> TaskScore:
        error = math.sqrt(accuracy * (1 - accuracy) / (items - 1))
        return make_score(
            task,
            step,
            accuracy,
            error,
            stages=tuple(ends[step]),
            num_fewshot=5 if task == "letters" else 0,
            items=items,
            chance=0.25,
            blind=0.3 if task == "letters" else 0.25,
            accuracy_norm=accuracy + 0.01,
            truncated=7 if task == "cloze" else 0,
        )

    learned = [
        score("letters", step, 1000, 0.25 + (0.2 - offset) * step / record.steps) for step in ends
    ]
    return [*learned, score("cloze", record.steps, 101, 0.26)]


def make_score(
    task: str, step: int, accuracy: float, error: float | None, **values: Any
) -> TaskScore:
    """A score, of a checkpoint unless `weights` says otherwise."""
    found = TaskScore(
        weights=str(step),
        step=step,
        tokens=step * BATCH_ROWS * SEQUENCE_LENGTH,
        stages=("Q3",),
        folder="evaluation/of/no/items",
        task=task,
        num_fewshot=0,
        items=1,
        answer_bits_per_byte=2 - accuracy,
        answer_bits_per_byte_stderr=error,
        chance=0.5,
        blind=0.75,
        accuracy=accuracy,
        accuracy_stderr=error,
        accuracy_norm=accuracy,
        accuracy_norm_stderr=error,
        truncated=0,
    )
    return dataclasses.replace(found, **values)


def make_run(
    root: Path,
    *,
    arms: tuple[str, ...] = ("frame", "random", "pd_ascending"),
    steps: int = 400,
    documents: int = 120,
    text: str = HOSTILE_TEXT,
    seeds: int = 1,
) -> tuple[RunConfig, RunDirectory]:
    """A finished run, but for its report."""
    directory = RunDirectory(root)
    rows = write_documents(directory, documents, text)
    write_json(directory.partition, make_partition().to_json())
    config = make_config(root, list(arms), seeds)
    for trial in config.trials:
        write_arm(directory, trial.name, steps)
        write_evaluation(directory, trial.name, rows, trial.seed)
    return config, directory
