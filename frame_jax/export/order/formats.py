"""A plan in, the configuration files of another trainer out, each with a note on their use.

Field names are those of the trainers' public sources, late 2026. They tokenize and pack by
themselves, so the rows differ from the rows here; quadrants, order and lengths are the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import yaml

from frame_jax.export.order.plan import Plan, Span, Trainer, pieces, stages

PIECES = 64  # of a smooth curriculum, where a trainer follows a schedule by itself
LARGEST_BLOCK = 32768  # sequences; Levanter packs a block's indices into 16 bits
LEAST = 1e-6  # Grain refuses a weight of zero, and a component that is left out loses its place

Files = dict[str, str]


def as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def table(spans: list[Span]) -> str:
    """The stages in Markdown."""
    cells = list(spans[0].mixture)
    lines = [
        f"| stage | from step | to step | {' | '.join(cells)} |",
        f"|---|---:|---:|{'---:|' * len(cells)}",
    ]
    for span in spans:
        shares = " | ".join(f"{span.mixture[cell]:.3f}" for cell in cells)
        lines.append(f"| {span.name} | {span.first:,} | {span.stop:,} | {shares} |")
    return "\n".join(lines)


def notes(plan: Plan, trainer: Trainer, text: str, spans: list[Span]) -> str:
    """NOTES.md: what the files are and how they are used."""
    return (
        f"# Curriculum {plan.curriculum}\n\n{text.strip()}\n\n{table(spans)}\n\n"
        f"Steps are of {trainer.batch_rows:,} sequences of {trainer.sequence_length:,} tokens, "
        "counted with the run's tokenizer, which is in `tokenizer/`.\n"
        f"The documents of each quadrant belong in `{trainer.data}/<quadrant>/`; `--shards` writes "
        "them.\nUse one learning-rate schedule over the whole run, constant or "
        "warmup-stable-decay, not one for each stage.\n"
    )


def levanter(plan: Plan, trainer: Trainer) -> Files:
    """A data section whose `train_weights` change over the run."""
    hard = math.isinf(plan.schedule.steepness)
    spans = stages(plan, trainer, smooth=False) if hard else pieces(plan, trainer, PIECES)
    stride = math.gcd(*(span.first for span in spans)) or spans[-1].stop
    blocks = [steps for steps in range(1, stride + 1) if stride % steps == 0]
    fitting = [steps for steps in blocks if steps * trainer.batch_rows <= LARGEST_BLOCK] or [1]
    config = {
        "data": {
            "tokenizer": "tokenizer",
            "cache_dir": "cache",
            "shuffle": True,
            "stop_strategy": "restart",
            "mixture_block_size": fitting[-1] * trainer.batch_rows,
            "components": {
                cell: {
                    "source": {
                        "type": "url",
                        "train_urls": [f"{trainer.data}/{cell}/*{trainer.suffix}"],
                    }
                }
                for cell in plan.schedule.cells
            },
            "train_weights": [[span.first, span.mixture] for span in spans],
        },
        "trainer": {
            "train_batch_size": trainer.batch_rows,
            "num_train_steps": spans[-1].stop,
        },
    }
    text = """
`levanter.yaml` holds the `data` section and the two trainer settings that belong to it; merge it
into your config and start `levanter.main.train_lm --config_path levanter.yaml`. `train_weights` is
a list of (first step, weights). Smooth transitions are cut into pieces of constant weights. Every
first step times the batch is a multiple of `mixture_block_size`, which Levanter requires: to change
the batch, export again with --batch_rows."""
    return {
        "levanter.yaml": as_yaml(config),
        "NOTES.md": notes(plan, trainer, text, stages(plan, trainer, smooth=True)),
    }


def maxtext(plan: Plan, trainer: Trainer) -> Files:
    """A Grain mixture file for each stage, and the launches in order."""
    spans = stages(plan, trainer, smooth=True)
    files: Files = {}
    launches = ["#!/usr/bin/env bash", "set -euo pipefail", ""]
    for number, span in enumerate(spans, 1):
        name = f"mixture-{number:02d}.json"
        components = {
            cell: {
                "path": f"{trainer.data}/{cell}/*.arrayrecord",
                "weight": max(share, LEAST),
            }
            for cell, share in span.mixture.items()
        }
        files[name] = json.dumps(components, indent=2) + "\n"
        launches.append(
            f'python3 -m maxtext.trainers.pre_train.train "$CONFIG" run_name="$RUN_NAME" '
            f"dataset_type=grain grain_file_type=arrayrecord "
            f"tokenizer_type=huggingface tokenizer_path=tokenizer "
            f"max_target_length={trainer.sequence_length} "
            f"grain_train_mixture_config_path={name} steps={span.stop} "
            f"learning_rate_schedule_steps={spans[-1].stop}  # {span.name}"
        )
    files["train.sh"] = "\n".join(launches) + "\n"
    text = f"""
One mixture file a stage, for `dataset_type=grain`; `train.sh` starts MaxText once a stage, each
time from the checkpoint of the stage before and up to a later `steps`. Set CONFIG and RUN_NAME, and
`per_device_batch_size` so that all devices together have {trainer.batch_rows} sequences. All
quadrants are in every file under the same names, so that MaxText finds each one's place again after
a change of weights and reads no document twice. Grain mixtures need ArrayRecord files
(`--shards arrayrecord`: records are tf.train.Example with `text`). Inside a stage the weights are
constant: a smooth transition becomes a step between the stages' mean mixtures. The module's name
has changed between releases (`MaxText.train` before)."""
    files["NOTES.md"] = notes(plan, trainer, text, spans)
    return files


def megatron(plan: Plan, trainer: Trainer) -> Files:
    """A blend file for each stage, and the launches in order."""
    spans = stages(plan, trainer, smooth=False)
    files: Files = {}
    transitions = ",".join(str(span.stop) for span in spans[:-1])
    launches = ["#!/usr/bin/env bash", "set -euo pipefail", ""]
    for number, span in enumerate(spans, 1):
        name = f"blend-{number:02d}.txt"
        used = {cell: share for cell, share in span.mixture.items() if share > 0}
        files[name] = (
            " ".join(f"{share} {trainer.data}/{cell}_text_document" for cell, share in used.items())
            + "\n"
        )
        phases = f"--phase-transition-iterations {transitions} " if transitions else ""
        launches.append(
            f'torchrun $TORCHRUN_ARGS pretrain_gpt.py $MODEL_ARGS --load "$CHECKPOINTS" '
            f'--save "$CHECKPOINTS" --data-args-path {name} --split 100,0,0 --eval-iters 0 '
            f"{phases}--global-batch-size {trainer.batch_rows} "
            f"--seq-length {trainer.sequence_length} "
            f"--train-samples {spans[-1].stop * trainer.batch_rows}"
            f"  # {span.name}, ends at iteration {span.stop}"
        )
    files["train.sh"] = "\n".join(launches) + "\n"
    text = f"""
One blend a stage, for `--data-args-path`; `train.sh` starts Megatron-LM once a stage. With
`--phase-transition-iterations` it saves and stops at each boundary and begins the next blend at its
start. The length is given as `--train-samples`, because many releases cannot cut phases out
of `--train-iters`; the learning rate is then counted in samples, too (`--lr-decay-samples`,
`--lr-warmup-samples`). Tokenize first, a prefix a quadrant:
`cat {trainer.data}/Q3/*.jsonl > Q3.jsonl`, then `tools/preprocess_data.py --input Q3.jsonl
--output-prefix {trainer.data}/Q3 --append-eod --tokenizer-type HuggingFaceTokenizer
--tokenizer-model tokenizer`. Because a stage begins its data anew, transitions are hard here (a
smooth one would repeat what it read ahead), and a quadrant that occurs in several stages is read
from its start in each. Set TORCHRUN_ARGS, MODEL_ARGS and CHECKPOINTS."""
    files["NOTES.md"] = notes(plan, trainer, text, spans)
    return files


def nanotron(plan: Plan, trainer: Trainer) -> Files:
    """The `data_stages` of a config."""
    spans = stages(plan, trainer, smooth=False)
    config = {
        "data_stages": [
            {
                "name": f"{number} {span.name}",  # a name may not occur twice
                "start_training_step": span.first + 1,
                "data": {
                    "dataset": {
                        "dataset_folder": [f"{trainer.data}/{cell}" for cell in used],
                        "dataset_weights": list(used.values()),
                    },
                    "num_loading_workers": 1,
                    "seed": 42,
                },
            }
            for number, span in enumerate(spans, 1)
            for used in [{cell: share for cell, share in span.mixture.items() if share > 0}]
        ],
        "tokens": {"sequence_length": trainer.sequence_length, "train_steps": spans[-1].stop},
        "tokenizer": {"tokenizer_name_or_path": "tokenizer"},
    }
    reader = trainer.suffix.lstrip(".")
    text = f"""
`nanotron.yaml` holds `data_stages` and the settings that belong to them; merge it into your
config. Steps count from 1. The global batch is dp x micro_batch_size x
batch_accumulation_per_replica: make it {trainer.batch_rows}. Tokenize each quadrant's documents
first, beside them: `python3 tools/preprocess_data.py --tokenizer-name-or-path tokenizer
--eos-token EOS --reader {reader} --dataset {trainer.data}/Q3 --glob-pattern '*{trainer.suffix}'
--output-folder {trainer.data}/Q3`, with the `eos_token` of `tokenizer/tokenizer_config.json` for
EOS. nanotron requires the tokenizer's name here and there to be the same. It begins every stage's
data anew, so transitions are hard here, and a quadrant that occurs in several stages is read from
its start in each."""
    return {"nanotron.yaml": as_yaml(config), "NOTES.md": notes(plan, trainer, text, spans)}


READS = {
    "levanter": ("jsonl", "parquet"),
    "maxtext": ("arrayrecord",),
    "megatron": ("jsonl",),
    "nanotron": ("jsonl", "parquet"),
}
FORMATS: dict[str, Callable[[Plan, Trainer], Files]] = {
    "levanter": levanter,
    "maxtext": maxtext,
    "megatron": megatron,
    "nanotron": nanotron,
}
