"""A plan in, the configuration files of another trainer out, each with a note on their use.

Field names are those of the trainers' public sources, late 2026; `tools/check_exports.py` feeds
what is written here to their own code. OLMo-core and MosaicML read the rows of the run itself. The
others tokenize and pack on their own, so that their rows differ from the rows here; quadrants,
order and lengths are the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import yaml

from frame_jax.export.order.plan import Plan, Span, Trainer, pieces, row_stages, stages

PIECES = 128  # of a smooth curriculum, where a trainer follows a schedule by itself
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


def notes(plan: Plan, trainer: Trainer, text: str, spans: list[Span], where: str = "") -> str:
    """NOTES.md: what the files are and how they are used.

    Args:
        plan: The curriculum.
        trainer: Who reads the files.
        text: What is particular to it.
        spans: The stages.
        where: What belongs in the data folder; by default the quadrants' documents.
    """
    where = where or f"The documents of each quadrant belong in `{trainer.data}/<quadrant>/`"
    return (
        f"# Curriculum {plan.curriculum}\n\n{text.strip()}\n\n{table(spans)}\n\n"
        f"Steps are of {trainer.batch_rows:,} sequences of {trainer.sequence_length:,} tokens, "
        "counted with the run's tokenizer, which is in `tokenizer/`.\n"
        f"{where}; `--shards` writes them.\n"
        "Use one learning-rate schedule over the whole run, constant or warmup-stable-decay, not "
        "one for each stage.\n"
    )


def script(*commands: str) -> str:
    """A shell script that runs in the folder in which it lies."""
    return "\n".join(
        ["#!/usr/bin/env bash", "set -euo pipefail", 'cd "$(dirname "$0")"', *commands, ""]
    )


def levanter(plan: Plan, trainer: Trainer) -> Files:
    """A data section whose `train_weights` change over the run."""
    spans = stages(plan, trainer, smooth=True)
    # Levanter cuts shares down to whole rows of a block. Blocks that divide the batch leave none
    # unfinished at the end, and of a power of two, so that no share is a rounding error too small.
    block = min(trainer.batch_rows & -trainer.batch_rows, LARGEST_BLOCK)
    parts = pieces(plan, trainer, PIECES, block)
    config = {
        "data": {
            "tokenizer": "tokenizer",
            "cache_dir": "cache",
            "shuffle": True,
            "stop_strategy": "restart",
            "mixture_block_size": block,
            "components": {
                cell: {
                    "source": {
                        "type": "url",
                        "train_urls": [f"{trainer.data}/{cell}/*{trainer.suffix}"],
                    }
                }
                for cell in plan.schedule.cells
            },
            "train_weights": [[span.first, span.mixture] for span in parts],
        },
        "train_seq_len": trainer.sequence_length,
        "trainer": {
            "train_batch_size": trainer.batch_rows,
            "num_train_steps": parts[-1].stop,
        },
    }
    text = """
`levanter.yaml` holds the `data` section, the sequence length and the two trainer settings that
belong to it; merge it into your config and start `levanter.main.train_lm --config_path
levanter.yaml` in this folder. `train_weights` is a list of (first step, weights). Smooth
transitions are cut into pieces of constant weights, in whole rows of `mixture_block_size`, which
divides the batch: to change the batch, export again with --batch_rows."""
    return {"levanter.yaml": as_yaml(config), "NOTES.md": notes(plan, trainer, text, spans)}


def maxtext(plan: Plan, trainer: Trainer) -> Files:
    """A Grain mixture file for each stage, and the launches in order."""
    spans = stages(plan, trainer, smooth=True)
    files: Files = {}
    lines = []
    for number, span in enumerate(spans, 1):
        name = f"mixture-{number:02d}.json"
        files[name] = json.dumps(documents(plan, trainer, span), indent=2) + "\n"
        lines.append(
            f"grain_train_mixture_config_path={name} steps={span.stop} "
            f"learning_rate_schedule_steps={spans[-1].stop}  # {span.name}"
        )
    program = (
        'python3 -m maxtext.trainers.pre_train.train "$CONFIG" run_name="$RUN_NAME" '
        "dataset_type=grain grain_file_type=arrayrecord tokenizer_type=huggingface "
        "tokenizer_path=tokenizer add_bos=true add_eos=true use_truncation=false packing=true "
        "grain_packing_type=concat_then_split enable_data_shuffling=true "
        f"num_epoch={plan.schedule.epochs + 1} max_target_length={trainer.sequence_length}"
    )
    files["train.sh"] = script(*(f"{program} {line}" for line in lines))
    text = f"""
One mixture file a stage, for `dataset_type=grain`; `train.sh` starts MaxText once a stage, each
time from the checkpoint of the stage before and up to a later `steps`. Set CONFIG (as seen from
this folder, or absolute) and RUN_NAME, and `per_device_batch_size` so that all devices together
have {trainer.batch_rows} sequences. All quadrants are in every file under the same names, so that
MaxText finds each one's place again after a change of weights. It draws documents, not sequences: a
weight is the quadrant's share of the tokens divided by the mean length of its documents. They are
cut into pieces (`use_truncation=false`; by default all but the first is dropped) that fill
sequences without padding (`concat_then_split`). `num_epoch` is one more than the order has, because
a mixture ends with the first of its quadrants. Grain mixtures need ArrayRecord files (`--shards
arrayrecord`: records are tf.train.Example with `text`). Inside a stage the weights are constant: a
smooth transition becomes a step between the stages' mean mixtures. The module's name has changed
between releases (`MaxText.train` before)."""
    files["NOTES.md"] = notes(plan, trainer, text, spans)
    return files


def documents(plan: Plan, trainer: Trainer, span: Span) -> dict[str, dict[str, Any]]:
    """A stage's mixture of quadrants where documents are drawn: shares over mean lengths."""
    drawn = {
        cell: max(share, LEAST) * plan.counts[cell]["documents"] / plan.counts[cell]["tokens"]
        for cell, share in span.mixture.items()
        if plan.counts[cell]["documents"]
    }
    return {
        cell: {
            "path": f"{trainer.data}/{cell}/*.arrayrecord",
            "weight": float(f"{rate / sum(drawn.values()):.6g}"),
        }
        for cell, rate in drawn.items()
    }


def megatron(plan: Plan, trainer: Trainer) -> Files:
    """A blend file for each stage, the launches in order, and what tokenizes the quadrants."""
    spans = stages(plan, trainer, smooth=False)
    files: Files = {}
    lines = []
    for number, span in enumerate(spans, 1):
        name = f"blend-{number:02d}.txt"
        used = {cell: share for cell, share in span.mixture.items() if share > 0}
        blend = [f"{share} {trainer.data}/{cell}_text_document" for cell, share in used.items()]
        files[name] = " ".join(blend) + "\n"
        lines.append(f"--data-args-path {name}  # {span.name}, ends at iteration {span.stop}")
    transitions = ",".join(str(span.stop) for span in spans[:-1])
    tokenizer = "--tokenizer-type HuggingFaceTokenizer --tokenizer-model tokenizer"
    program = (
        f'torchrun $TORCHRUN_ARGS "$MEGATRON/pretrain_gpt.py" $MODEL_ARGS {tokenizer} '
        '--load "$CHECKPOINTS" --save "$CHECKPOINTS" --split 100,0,0 --eval-iters 0 '
        + (f"--phase-transition-iterations {transitions} " if transitions else "")
        + f"--global-batch-size {trainer.batch_rows} --seq-length {trainer.sequence_length} "
        f"--train-samples {spans[-1].stop * trainer.batch_rows}"
    )
    files["train.sh"] = script(*(f"{program} {line}" for line in lines))
    cells = " ".join(plan.schedule.cells)
    source = f'"{trainer.data}/$cell{trainer.suffix}"'
    files["tokenize.sh"] = script(
        f"for cell in {cells}; do",
        f'  cat "{trainer.data}/$cell"/*{trainer.suffix} > {source}',
        f'  python3 "$MEGATRON/tools/preprocess_data.py" --input {source} \\',
        f'    --output-prefix "{trainer.data}/$cell" --append-eod --workers "${{WORKERS:-8}}" \\',
        f"    {tokenizer}",
        "done",
    )
    text = f"""
One blend a stage, for `--data-args-path`. Set MEGATRON to Megatron-LM's folder and run
`tokenize.sh`, which makes one prefix a quadrant, `{trainer.data}/<quadrant>_text_document`. Then
set TORCHRUN_ARGS, MODEL_ARGS and CHECKPOINTS (folders as seen from this one, or absolute):
`train.sh` starts Megatron-LM once a stage, in this folder. With `--phase-transition-iterations` it
saves and stops at each boundary and begins the next blend at its start. The length is given as
`--train-samples`, because many releases cannot cut phases out of `--train-iters`; the learning rate
is then counted in samples, too (`--lr-decay-samples`, `--lr-warmup-samples`). Because a stage
begins its data anew, transitions are hard here (a smooth one would repeat what it read ahead), and
a quadrant that occurs in several stages is read from its start in each. Sequences overlap by a
token there and rows do not here, so that a stage leaves up to 1 in {trainer.sequence_length} of its
quadrants' tokens unread, and what rounding to whole steps leaves."""
    files["NOTES.md"] = notes(plan, trainer, text, spans)
    return files


def nanotron(plan: Plan, trainer: Trainer) -> Files:
    """A config for each stage, and what tokenizes the quadrants."""
    spans = stages(plan, trainer, smooth=True)
    listed = [
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
    ]
    files = {
        f"nanotron-{number:02d}.yaml": as_yaml(
            {
                "data_stages": listed[:number],
                "tokens": {"sequence_length": trainer.sequence_length, "train_steps": span.stop},
                "tokenizer": {"tokenizer_name_or_path": "tokenizer"},
                "checkpoints": {"save_final_state": True},
            }
        )
        for number, span in enumerate(spans, 1)
    }
    files["tokenize_documents.py"] = DATATROVE.format(
        cells=tuple(plan.schedule.cells),
        data=trainer.data,
        reader={".jsonl": "JsonlReader", ".parquet": "ParquetReader"}[trainer.suffix],
        pattern=f"*{trainer.suffix}",
    )
    text = f"""
Run `python3 tokenize_documents.py` in this folder: it tokenizes each quadrant's documents with
datatrove, beside them. Then one launch a stage: nanotron reads only the last of a config's
`data_stages`. `nanotron-01.yaml` and so on hold the stages up to each and the settings that belong
to them; merge each into your config and run `run_train.py --config-file` with one after the other,
each from the checkpoint that the one before leaves at its last step
(`checkpoints.resume_checkpoint_path`). Give the learning rate its own length
(`learning_rate_scheduler.lr_decay_steps`), or it would end with each launch. Steps count from 1.
The global batch is dp x micro_batch_size x batch_accumulation_per_replica: make it
{trainer.batch_rows}. A quadrant goes on in a stage where the stage before left it. Inside a stage
the weights are constant: a smooth transition becomes a step between the stages' mean mixtures."""
    return {**files, "NOTES.md": notes(plan, trainer, text, spans)}


DATATROVE = """# Tokenizes each quadrant's documents for nanotron; needs datatrove[io,processing].
import json
from pathlib import Path

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.readers import {reader}
from datatrove.pipeline.tokens import DocumentTokenizer

DATA = {data!r}
EOS = json.load(Path("tokenizer/tokenizer_config.json").open(encoding="utf-8"))["eos_token"]

if __name__ == "__main__":
    for cell in {cells}:
        folder = f"{{DATA}}/{{cell}}"
        steps = [
            {reader}(folder, glob_pattern="{pattern}", text_key="text", id_key="doc_id"),
            DocumentTokenizer(
                folder,
                tokenizer_name_or_path="tokenizer/tokenizer.json",
                eos_token=EOS,
                shuffle_documents=False,
            ),
        ]
        LocalPipelineExecutor(steps, tasks=1, skip_completed=False).run()
"""


def olmo_core(plan: Plan, trainer: Trainer) -> Files:
    """A module with the sources of every stage and a data loader that keeps their order."""
    steps = plan.schedule.rows // trainer.batch_rows
    module = OLMO_CORE.format(
        curriculum=plan.curriculum,
        data=trainer.data,
        folders=[folder for folder, *_ in row_stages(plan)],
        row=trainer.sequence_length + 1,
        batch_rows=trainer.batch_rows,
        steps=steps,
        **{name: plan.special[name] for name in ("bos_id", "eos_id", "vocab_size")},
    )
    text = f"""
`order.py` builds OLMo-core's composable data loader (3.0 and later): one instance source a stage,
in order, and `shuffle=False`. Import `data_loader` and give it to your trainer, with
`max_duration=Duration.steps({steps})`. An instance is a row of this run, of
{trainer.sequence_length + 1:,} ids of which {trainer.sequence_length:,} are predicted, and instance
n is row n of the training here, transitions included. The files hold uint32 ids without a header.
Every row is in one file, and no file holds rows of two stages, so that older releases read them,
too (`NumpyFSLDatasetConfig`, whose loader must be told not to shuffle). The last
{plan.schedule.rows % trainer.batch_rows} rows, less than a batch, are not read. Padding at the ends
of rows is BOS ({plan.special["bos_id"]}); here it has no loss."""
    spans = stages(plan, trainer, smooth=True)
    return {"order.py": module, "NOTES.md": notes(plan, trainer, text, spans, rows_in(trainer))}


OLMO_CORE = '''# Curriculum {curriculum!r} for OLMo-core: the rows of every stage, in order.

from olmo_core.data import TokenizerConfig
from olmo_core.data.composable import (
    ComposableDataLoader,
    ComposableDataLoaderConfig,
    ConcatAndChunkInstanceSourceConfig,
)
from olmo_core.data.types import NumpyDatasetDType

DATA = {data!r}
FOLDERS = {folders}
STEPS = {steps}

tokenizer = TokenizerConfig(
    vocab_size={vocab_size}, bos_token_id={bos_id}, eos_token_id={eos_id}, pad_token_id={bos_id}
)
sources = [
    ConcatAndChunkInstanceSourceConfig.from_npy(
        f"{{DATA}}/{{folder}}/*.npy",
        tokenizer=tokenizer,
        dtype=NumpyDatasetDType.uint32,
        sequence_length={row},
        label=folder,
    )
    for folder in FOLDERS
]
config = ComposableDataLoaderConfig(
    tokenizer=tokenizer, global_batch_size={batch_rows} * {row}, shuffle=False
)


def data_loader(work_dir: str, **distributed) -> ComposableDataLoader:
    """`distributed`: mesh or dp_process_group."""
    built = [source.build(work_dir) for source in sources]
    return config.build(*built, work_dir=work_dir, **distributed)
'''


def mosaicml(plan: Plan, trainer: Trainer) -> Files:
    """A module with a StreamingDataset that reads the stages' rows in order."""
    remote = "://" in trainer.data
    module = MOSAICML.format(
        curriculum=plan.curriculum,
        data=trainer.data,
        folders=[folder for folder, *_ in row_stages(plan)],
        stream='remote=f"{DATA}/{folder}", local=f"{CACHE}/{folder}"'
        if remote
        else 'local=f"{DATA}/{folder}"',
        cache='\nCACHE = "cache"' if remote else "",
        batch_rows=trainer.batch_rows,
    )
    text = f"""
`order.py` makes a StreamingDataset of one stream a stage (MDS folders; a sample's `tokens` are the
ids of a row of this run), in order, with `shuffle=False` and `num_canonical_nodes=1`: sample n is
row n of the training here, transitions included, and each batch of all devices together holds
consecutive rows, on any number of nodes. Train one epoch of it. Give every device as many sequences
that all together have {trainer.batch_rows}. A row has {trainer.sequence_length + 1:,} ids of which
{trainer.sequence_length:,} are predicted: in LLM Foundry, `max_seq_len:
{trainer.sequence_length + 1}`, the streams of `order.py`, `shuffle: false` and
`num_canonical_nodes: 1`. Padding at the ends of rows is BOS ({plan.special["bos_id"]}); here it has
no loss."""
    spans = stages(plan, trainer, smooth=True)
    return {"order.py": module, "NOTES.md": notes(plan, trainer, text, spans, rows_in(trainer))}


MOSAICML = '''# Curriculum {curriculum!r} for MosaicML streaming: the rows of every stage, in order.

from streaming import Stream, StreamingDataset

DATA = {data!r}{cache}
FOLDERS = {folders}


def dataset(batch_size: int, **options) -> StreamingDataset:
    """`batch_size`: sequences of one device; all devices together have {batch_rows}."""
    streams = [Stream({stream}) for folder in FOLDERS]
    return StreamingDataset(
        streams=streams, shuffle=False, num_canonical_nodes=1, batch_size=batch_size, **options
    )
'''


def rows_in(trainer: Trainer) -> str:
    """What NOTES.md says of the data folder where the run's own rows are read."""
    return f"The rows of each stage belong in `{trainer.data}/<number of the stage>/`"


READS = {
    "levanter": ("jsonl", "parquet"),
    "maxtext": ("arrayrecord",),
    "megatron": ("jsonl",),
    "mosaicml": ("mds",),
    "nanotron": ("jsonl", "parquet"),
    "olmo_core": ("npy",),
}
FORMATS: dict[str, Callable[[Plan, Trainer], Files]] = {
    "levanter": levanter,
    "maxtext": maxtext,
    "megatron": megatron,
    "mosaicml": mosaicml,
    "nanotron": nanotron,
    "olmo_core": olmo_core,
}
