"""Exports a trained trial as a Hugging Face checkpoint: `python -m frame_jax.export RUN --out DIR`.

Reads RUN/pretrain/<trial>/, RUN/tokenizer and what is there of RUN/quadrants and
RUN/evaluation. Any kept checkpoint can be exported, by its step or by the stage that it ends.
"""

import argparse
from pathlib import Path

import yaml

from frame_jax import __version__, checkpoints
from frame_jax.config.evaluation import AverageConfig
from frame_jax.config.paths import user_path
from frame_jax.errors import UserError
from frame_jax.evaluation.results import read_result
from frame_jax.evaluation.weights import Weights
from frame_jax.models.hugging_face.export import export_checkpoint, kept_origin
from frame_jax.models.transformer import Decoder, read_description
from frame_jax.run.directory import RunDirectory, new_folder
from frame_jax.run.partition_record import read_partition_record
from frame_jax.run.program_exit import run_command
from frame_jax.run.special_tokens import read_special_tokens
from frame_jax.run.trial_record import TrialRecord, choose_checkpoint_step, read_trial_record


def parser() -> argparse.ArgumentParser:
    """The command line's options."""
    options = argparse.ArgumentParser(
        prog="python -m frame_jax.export", description="Write a trained model for Hugging Face."
    )
    options.add_argument("run", help="run directory with a trained curriculum")
    options.add_argument("--trial", default="frame", help="which trial (default: frame)")
    options.add_argument("--out", required=True, help="new folder for the checkpoint")
    which = options.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="a kept checkpoint; the last by default")
    which.add_argument("--stage", help="the checkpoint at the end of this stage, such as Q4")
    which.add_argument(
        "--average_last",
        type=int,
        metavar="N",
        help="the mean of the last N kept checkpoints, of those for averages where there are any",
    )
    return options


def export_trial(
    directory: RunDirectory,
    trial: str,
    out: Path,
    *,
    step: int | None = None,
    stage: str | None = None,
    mean: AverageConfig | None = None,
) -> int:
    """Writes the checkpoint and its model card to `out`, which appears whole or not at all.

    The checkpoint is that of `step`, else of the end of `stage` (where several epochs repeat the
    name, the last of them), else the last, or in its place the `mean` of the last ones.

    Returns:
        The step exported, of a mean the last.

    Raises:
        UserError: if there is no such trial, checkpoint or stage, or `out` is taken.
    """
    folder, trial_record = read_trial_record(directory, trial)
    if out.exists():
        raise UserError(f"{out} is there already: choose another --out, or remove it")
    if mean:
        weights = Weights.mean(trial_record, mean)
    else:
        weights = Weights.of_step(choose_checkpoint_step(trial_record, step, stage))
    saved = folder / "checkpoints"
    checkpoints.require_saved(saved, weights.steps)
    decoder, origin = read_description(folder), kept_origin(folder)
    with new_folder(out) as temporary:
        export_checkpoint(
            temporary,
            decoder,
            checkpoints.load_mean(saved, decoder, weights.steps),
            tokenizer=directory.tokenizer,
            special_tokens=read_special_tokens(directory),
            context=trial_record.sequence_length,
            origin=origin,
        )
        card = model_card(directory, trial, trial_record, weights, decoder, origin is not None)
        (temporary / "README.md").write_text(card, "utf-8")
    return weights.step


def model_card(
    directory: RunDirectory,
    trial: str,
    trial_record: TrialRecord,
    weights: Weights,
    decoder: Decoder,
    continued: bool,
) -> str:
    """README.md of a checkpoint: what was trained on what, in which order, and how to load it."""
    vocab_size, step = read_special_tokens(directory).vocab_size, weights.step
    stages = "\n".join(
        f"| {item.name} | {item.first_step:,} | {item.last_step:,} | "
        f"{(item.last_row - item.first_row) * trial_record.sequence_length:,} |"
        for item in trial_record.stages
    )
    about = ""
    if len(weights.steps) > 1:
        listing = ", ".join(f"{each:,}" for each in weights.steps)
        about = f" The weights are the mean of the checkpoints at steps {listing}."
    rows = f"The embedding has {decoder.vocab_size:,} rows, the tokenizer {vocab_size:,} tokens"
    rest = "the rest is padding, which the model has learned never to predict"
    rows = f"{rows}: {rest}." if decoder.vocab_size > vocab_size else f"{rows}."
    framing = "BOS stands before every text, and special tokens that a text spells out stay text."
    comment = "  # begins with BOS"
    if continued:
        comment = ""
        framing = "Tokenizer, generation settings and chat template are those of that model."
    card = (
        Path(__file__)
        .with_name("model_card.md")
        .read_text("utf-8")
        .format(
            trial=trial,
            record=trial_record,
            step=step,
            tokens=step * trial_record.tokens_per_step,
            parameters=decoder.parameter_count(),
            version=__version__,
            began=initial_model(directory),
            about=about,
            comment=comment,
            rows=rows,
            framing=framing,
            stages=stages,
        )
    )
    return card + data_section(directory) + held_out_section(directory, trial, weights)


def initial_model(directory: RunDirectory) -> str:
    """How the training of a run's models began, for the model card."""
    text = directory.config.read_text("utf-8") if directory.config.exists() else "{}"
    initial = yaml.safe_load(text).get("pretrain", {}).get("initial")
    if not initial:
        return "trained from scratch"
    return f"continued from `{' '.join(str(v) for v in initial.values() if v is not None)}`"


DATA = "Documents by perplexity (PPL) and perplexity difference (PD) of two reference models."
DATA_ELSEWHERE = "Documents by two numbers that were made elsewhere."


def data_section(directory: RunDirectory) -> str:
    """The model card's section on what each quadrant holds; empty for a run without quadrants."""
    if not directory.partition.exists():
        return ""
    partition = read_partition_record(directory)
    lines = [
        "\n## Data\n",
        f"{DATA if partition.ppl_model else DATA_ELSEWHERE}\n",
        f"| quadrant | documents | text tokens | {' | '.join(partition.names)} |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, quadrant in partition.quadrants.items():
        ppl, pd = ("" if v is None else f"{v:.3f}" for v in (quadrant.ppl, quadrant.pd))
        lines.append(f"| {name} | {quadrant.documents:,} | {quadrant.tokens:,} | {ppl} | {pd} |")
    lines += [
        f"\nWith {each.of_models}, {each.documents:,} documents rank alike by Spearman's "
        f"{each.ppl.value:.2f} ({partition.names[0]}) and {each.pd.value:.2f} "
        f"({partition.names[1]}), and {each.quadrant.value:.0%} of their tokens are in the same "
        f"quadrant (by chance {each.quadrant.chance:.0%})."
        for each in partition.reliability
        if each.domain is None
    ]
    return "\n".join(lines) + "\n"


def held_out_section(directory: RunDirectory, trial: str, weights: Weights) -> str:
    """The model card's section on the held-out loss; empty where it was not measured."""
    if not directory.evaluation(trial).exists():
        return ""
    result = read_result(directory, trial)
    for measured in (*result.checkpoints, *result.averages):
        if measured.name == weights.name:
            loss = measured.overall
            return (
                f"\n## Held-out loss\n\n{loss.nll_per_token:.4f} nats a token, "
                f"{loss.bits_per_byte:.4f} bits a byte, over {loss.documents:,} documents "
                "kept out of training.\n"
            )
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for bad input."""

    def command(options: argparse.Namespace) -> None:
        last = options.average_last
        step = export_trial(
            RunDirectory(options.run),
            options.trial,
            user_path(options.out),
            step=options.step,
            stage=options.stage,
            mean=None if last is None else AverageConfig(last),
        )
        print(f"{options.trial}, step {step:,}: {options.out}")

    return run_command(parser(), command, arguments)
