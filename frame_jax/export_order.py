"""Exports a run's order for another trainer: `python -m frame_jax.export_order`.

Needs the phases up to partition; nothing has to be trained here. Writes one format's files,
NOTES.md and the tokenizer into a new folder and, with --shards, the documents of every quadrant as
text or, for trainers that read rows, the rows of every stage; or a manifest of all rows
(`manifest.py`).
"""

import argparse

from frame_jax.config.file import load
from frame_jax.config.parallel import ParallelConfig
from frame_jax.config.paths import user_path
from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError
from frame_jax.export.order.documents import write_documents
from frame_jax.export.order.formats import levanter, maxtext, megatron, mosaicml, olmo_core
from frame_jax.export.order.manifest import write_manifest
from frame_jax.export.order.shards import KINDS, ROWS, TEXT, write_shards
from frame_jax.export.order.trial_order import Trainer, TrialOrder, make_trial_order
from frame_jax.models.hugging_face.export import write_tokenizer
from frame_jax.parallel import processes
from frame_jax.run import integrity
from frame_jax.run.directory import RunDirectory, new_folder
from frame_jax.run.partition_record import require_quadrants
from frame_jax.run.program_exit import positive, run_command, run_main, run_on_all_processes

# Each module's `files` makes the trainer's configuration and a note on its use from an order; its
# `DATA_FORMATS` are the kinds of data that the trainer reads.
MODULES = (levanter, maxtext, megatron, mosaicml, olmo_core)
FORMATS = {module.__name__.rpartition(".")[2]: module for module in MODULES}
PROCESSES = ("distributed", "coordinator_address", "num_processes", "process_id")


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = argparse.ArgumentParser(
        prog="python -m frame_jax.export_order",
        description="Write a curriculum for another trainer.",
    )
    options.add_argument("run", help="run directory, partitioned")
    options.add_argument("--trial", default="frame", help="which order (default: frame)")
    formats = ("parquet", "manifest", *FORMATS)
    options.add_argument("--to", choices=formats, required=True, help="format")
    options.add_argument(
        "--out", help="new folder (a manifest goes to RUN/manifest/CURRICULUM without it)"
    )
    shards = "also write the data: each quadrant's documents as text, or each stage's rows"
    options.add_argument("--shards", choices=KINDS, help=shards)
    options.add_argument(
        "--data", default="data", help="where the documents or rows will lie (default: data)"
    )
    batch_size = "sequences in a step of the other trainer (default: here's)"
    options.add_argument("--batch_size", type=positive, help=batch_size)
    length = "tokens in its sequences (default: here's)"
    options.add_argument("--sequence_length", type=positive, help=length)
    group = options.add_argument_group("processes that write a manifest together")
    group.add_argument("--distributed", action="store_true", help="they find each other as main's")
    group.add_argument("--coordinator_address", help="host:port of process 0")
    group.add_argument("--num_processes", type=int, help="their number")
    group.add_argument("--process_id", type=int, help="index of this one")
    return options


def write_order(options: argparse.Namespace) -> None:
    """Writes `options.out`, which appears whole or not at all; a manifest does so part by part.

    Raises:
        UserError: if the run is not partitioned, has no such curriculum, or `out` is taken.
    """
    directory = RunDirectory(options.run)
    if options.out is None and options.to != "manifest":
        raise UserError(f"--to {options.to} needs --out, a new folder")
    out = user_path(options.out or directory.manifest(options.trial))
    if options.to == "manifest":
        if options.shards is not None:
            raise UserError("--to manifest writes no texts: leave out --shards")
        processes.start(ParallelConfig(**{name: getattr(options, name) for name in PROCESSES}))
        config, trial_order = run_on_all_processes(lambda: planned_order(directory, options.trial))
        return write_manifest(config, directory, trial_order, out)
    if options.distributed:
        raise UserError(f"--distributed is for --to manifest: one process writes {options.to}")
    if out.exists():
        raise UserError(f"{out} is there already: choose another --out, or remove it")
    reads = FORMATS[options.to].DATA_FORMATS if options.to in FORMATS else tuple(TEXT)
    if options.shards not in (None, *reads):
        raise UserError(
            f"{options.to} does not read {options.shards}: choose --shards {' or '.join(reads)}"
        )
    config, trial_order = planned_order(directory, options.trial)
    if reads[0] in ROWS and options.sequence_length not in (None, trial_order.sequence_length):
        raise UserError(
            f"{options.to} reads the run's own rows, which predict "
            f"{trial_order.sequence_length:,} tokens "
            "each: leave out --sequence_length"
        )
    data = options.data.rstrip("/")
    trainer = Trainer(
        batch_size=options.batch_size or config.pretrain.training.batch_size,
        sequence_length=options.sequence_length or config.partition.rows.sequence_length,
        # Elsewhere nobody expands a `~`: it would stand in quotes, or in a file of settings.
        data=str(user_path(data)) if data.startswith("~") else data,
        suffix=KINDS[options.shards or reads[0]],
    )
    with new_folder(out) as temporary:
        if options.to == "parquet":
            write_documents(config, directory, trial_order, temporary)
        else:
            for name, text in FORMATS[options.to].files(trial_order, trainer).items():
                (temporary / name).write_text(text, "utf-8")
        special_tokens, tokenizer = trial_order.special_tokens, temporary / "tokenizer"
        tokenizer.mkdir()
        length, vocab_size = trainer.sequence_length, special_tokens.vocab_size
        write_tokenizer(tokenizer, directory.tokenizer, special_tokens, length, vocab_size)
        if options.shards:
            write_shards(config, directory, trial_order, options.shards, temporary / "data")


def planned_order(directory: RunDirectory, trial: str) -> tuple[RunConfig, TrialOrder]:
    """Loads a run's settings and the order of one of its trials.

    Raises:
        UserError: if the run is not partitioned, what was made then is damaged, or it has no such
            curriculum.
    """
    require_quadrants(directory, directory.quadrants / "rows.json")
    config = load(directory.config)
    trial_order = make_trial_order(config, directory, trial)
    integrity.verify_checksums(directory, ["partition"], integrity.HASHED)
    return config, trial_order


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for bad input."""

    def command(options: argparse.Namespace) -> None:
        write_order(options)
        print(f"{options.trial} for {options.to}: {options.out or 'in the run directory'}")

    return run_command(parser(), command, arguments)


if __name__ == "__main__":
    run_main(main)
