"""The reference models of a run in: trained here or imported. Decoders with parameters out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from frame_jax import checkpoints
from frame_jax.config import ReferenceModelConfig, RunConfig
from frame_jax.errors import UserError
from frame_jax.models.functional import Decoder, read_description
from frame_jax.models.hugging_face import import_checkpoint
from frame_jax.models.transformer import Params
from frame_jax.run_directory import RunDirectory, read_json
from frame_jax.scoring.tokenizers import require_same_tokenizer

NAMES = ("weak", "strong")


def load_references(
    config: RunConfig, directory: RunDirectory
) -> tuple[tuple[Decoder, Params], tuple[Decoder, Params]]:
    """The weak and the strong model, parameters as NumPy arrays. All processes call it together.

    Raises:
        UserError: if a model is missing, cannot be imported or does not fit the run's tokenizer.
    """
    weak, strong = (
        load_reference(getattr(config.reference, name), directory, name, config) for name in NAMES
    )
    return weak, strong


def load_reference(
    reference: ReferenceModelConfig, directory: RunDirectory, name: str, config: RunConfig
) -> tuple[Decoder, Params]:
    compute_dtype = config.scoring.compute_dtype
    if reference.checkpoint is not None:
        folder = Path(reference.checkpoint)
        require_same_tokenizer(folder, directory.tokenizer, f"reference.{name}.checkpoint")
        decoder, params = import_checkpoint(folder, longest=config.scoring.context)
        decoder = dataclasses.replace(decoder, compute_dtype=compute_dtype)
    else:
        folder = directory.reference(name)
        if not (folder / "model.json").exists():
            raise UserError(
                f"no {name} reference model at {folder}: run the reference phase, or name a "
                f"Hugging Face checkpoint in reference.{name}.checkpoint"
            )
        decoder = read_description(folder, compute_dtype=compute_dtype)
        params = checkpoints.load_params(folder / "checkpoints", decoder)
    vocab_size = special_tokens(directory)["vocab_size"]
    if decoder.vocab_size < vocab_size:
        raise UserError(
            f"reference.{name}: the model at {folder} knows {decoder.vocab_size} tokens, but "
            f"{directory.tokenizer} has {vocab_size}: both reference models must share the run's "
            "tokenizer"
        )
    return decoder, params


def special_tokens(directory: RunDirectory) -> dict[str, int]:
    """`bos_id`, `eos_id` and `vocab_size` of the run's tokenizer."""
    return read_json(directory.tokenizer.with_name("special_tokens.json"))
