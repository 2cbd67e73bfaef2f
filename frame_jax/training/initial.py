"""The model that the target starts from (`pretrain.initial`): its shape, its weights, its files.

It is a Hugging Face checkpoint or a trial of another run. Its shape is the target's, and so are the
rows of its embedding, of which some may be padding.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from frame_jax import checkpoints
from frame_jax.config.models import ModelConfig, layer_pattern
from frame_jax.config.run import RunConfig
from frame_jax.config.settings import flatten_settings
from frame_jax.config.training import InitialConfig
from frame_jax.errors import UserError
from frame_jax.files import is_checkpoint, local_copy
from frame_jax.models.hugging_face.export import keep_origin
from frame_jax.models.hugging_face.weights import read_decoder, read_weights
from frame_jax.models.transformer import Decoder, Params, read_description
from frame_jax.run.directory import RunDirectory
from frame_jax.run.markers import read_complete_marker
from frame_jax.run.special_tokens import read_special_tokens
from frame_jax.run.trial_record import FILE, averaged_steps, read_trial_record
from frame_jax.scoring.checks import check_checkpoint, check_tokenizer

KEY = "pretrain.initial"


class TrialWeights(NamedTuple):
    """Weights of a trial of another run, in `folder`: those of a step, or the mean of several."""

    folder: Path
    steps: tuple[int, ...]


def target_decoder(config: RunConfig, vocab_rows: int) -> Decoder:
    """The shape of the target model: `pretrain.model`, or that of the model it starts from.

    `vocab_rows` are rows of the embedding where it starts from random weights.

    Raises:
        UserError: if that model cannot be found or computed, and naming each setting of
            `pretrain.model` that is another there.
    """
    initial = config.pretrain.initial
    if initial is None:
        return Decoder(config.pretrain.model, vocab_rows)
    if initial.checkpoint is None:
        decoder, origin = read_description(trial_weights(initial).folder), initial.run
    else:
        origin = initial.checkpoint
        folder = local_copy(origin, lambda name: name == "config.json")
        longest = max(config.partition.rows.sequence_length, config.scoring.context)
        decoder = read_decoder(folder, longest)
    if found := disagreements(config.pretrain.model, decoder.config):
        raise UserError(
            f"pretrain.model is not the model that {KEY} names, whose shape is the target's; leave "
            f"out what {origin} decides:\n  " + "\n  ".join(found)
        )
    return decoder


def disagreements(asked: ModelConfig, found: ModelConfig) -> list[str]:
    """The settings of a model that are neither the default nor as in `found`, with both values."""
    found = dataclasses.replace(found, head_dim=found.resolved_head_dim)
    ours, theirs, default = (
        flatten_settings(dataclasses.replace(c, layers=layer_pattern(c.layers)), "pretrain.model")
        for c in (asked, found, ModelConfig())
    )
    return [
        f"{key}: {value!r} in the config, {theirs.get(key)!r} there"
        for key, value in ours.items()
        if value != default.get(key) and value != theirs.get(key)
    ]


def trial_weights(initial: InitialConfig) -> TrialWeights:
    """The weights of another run's trial that the settings name.

    Raises:
        UserError: if there is no such trial, it is not trained to its end, or too few checkpoints
            were kept for an average.
    """
    directory, name = RunDirectory(str(initial.run)), initial.trial
    if name is None:
        names = sorted(path.parent.name for path in directory.root.glob(f"pretrain/*/{FILE}"))
        if len(names) != 1:
            there = f"name one of {', '.join(names)}" if names else "train one there first"
            raise UserError(f"{KEY}.trial: {initial.run} has {len(names)} trained trials: {there}")
        name = names[0]
    folder, record = read_trial_record(directory, name)
    if read_complete_marker(directory, f"pretrain-{name}") is None:
        raise UserError(f"{KEY}: {folder} is not trained to its end: end that run first")
    if initial.weights is not None:
        last = int(initial.weights.removeprefix("last"))
        return TrialWeights(folder, tuple(averaged_steps(record, last)))
    step = record.steps if initial.step is None else initial.step
    return TrialWeights(folder, (step,))


def initial_params(initial: InitialConfig, decoder: Decoder, shardings: Any) -> Params:
    """Reads the weights onto the devices; every process reads what its devices hold.

    All processes must call it together. `shardings` is a tree of those of the parameters.

    Raises:
        UserError: if they cannot be read.
    """
    if initial.checkpoint is not None:
        return read_weights(local_copy(initial.checkpoint, is_checkpoint), decoder, shardings)
    found = trial_weights(initial)
    saved = found.folder / "checkpoints"
    return checkpoints.load_mean(saved, decoder, found.steps, shardings=shardings)


def trial_digest(initial: InitialConfig) -> str:
    """Identifies the weights of another run's trial by the digests that its checkpoints carry.

    Raises:
        UserError: if they cannot be read.
    """
    found = trial_weights(initial)
    saved = found.folder / "checkpoints"
    digests = [checkpoints.saved_digests(saved, step)["params"] for step in found.steps]
    return f"{found.steps} {digests}"


def keep_files(initial: InitialConfig, decoder: Decoder, folder: Path) -> None:
    """Copies into a trial's folder what its export takes from the model that it starts from."""
    checkpoint = initial.checkpoint
    source = local_copy(checkpoint, is_checkpoint) if checkpoint else trial_weights(initial).folder
    keep_origin(source, folder, decoder)


def check_initial(
    config: RunConfig, directory: RunDirectory, *, tokenizer_anew: bool = False
) -> None:
    """Checks the model to start from before anything is spent.

    `tokenizer_anew` is as in `scoring.checks.check_references`.

    Raises:
        UserError: if it cannot be read or computed, or does not read the run's tokens.
    """
    initial = config.pretrain.initial
    if initial is None:
        return
    if initial.checkpoint is not None:
        key, checkpoint = f"{KEY}.checkpoint", initial.checkpoint
        length = max(config.partition.rows.sequence_length, config.scoring.context)
        folder = check_checkpoint(key, checkpoint, length)[0]
    else:
        found, key, other = trial_weights(initial), f"{KEY}.run", RunDirectory(str(initial.run))
        if other.root.resolve() == directory.root.resolve():
            raise UserError(f"{key}: {initial.run} is this run: continue it in a new run directory")
        checkpoints.require_saved(found.folder / "checkpoints", found.steps)
        folder = other.tokenizer.parent
    rows = target_decoder(config, 0).vocab_size
    framing = check_tokenizer(config, directory, key, folder, rows, tokenizer_anew, ends=True)
    if initial.run is not None:
        theirs = read_special_tokens(RunDirectory(initial.run))
        if (theirs.bos_id, theirs.eos_id) != framing:
            raise UserError(
                f"{key}: documents there begin and end with tokens {theirs.bos_id} and "
                f"{theirs.eos_id}, here with {framing[0]} and {framing[1]}: set "
                "tokenizer.bos_token and tokenizer.eos_token to those of that run"
            )
