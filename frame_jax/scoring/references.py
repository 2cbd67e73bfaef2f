"""Loads the two reference models of a run, trained here or imported."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import jax
import numpy as np

from frame_jax import checkpoints
from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError
from frame_jax.files import is_checkpoint, local_copy
from frame_jax.models.hugging_face.weights import import_checkpoint
from frame_jax.models.transformer import Decoder, Params, read_description
from frame_jax.run.directory import RunDirectory
from frame_jax.run.special_tokens import read_special_tokens
from frame_jax.scoring.model_tokenizers import REFERENCE_NAMES, load_own_tokenizer
from frame_jax.scoring.tokenizers import read_tokenizer, require_rows, require_same_tokenizer


def load_references(
    config: RunConfig, directory: RunDirectory
) -> tuple[tuple[Decoder, Params], tuple[Decoder, Params]]:
    """Loads the weak and the strong model, parameters as NumPy arrays; all processes call it.

    Raises:
        UserError: if a model is missing, cannot be imported or does not fit the run's tokenizer.
    """
    weak, strong = (load_reference(config, directory, name) for name in REFERENCE_NAMES)
    return weak, strong


def load_reference(config: RunConfig, directory: RunDirectory, name: str) -> tuple[Decoder, Params]:
    """Loads one reference model."""
    compute_dtype, special_tokens = config.scoring.compute_dtype, read_special_tokens(directory)
    checkpoint = getattr(config.reference, name).checkpoint
    if checkpoint is not None:
        key, folder = f"reference.{name}.checkpoint", local_copy(checkpoint, is_checkpoint)
        bos_id, run_tokenizer = special_tokens.bos_id, directory.tokenizer
        if config.scoring.unit == "token":
            require_same_tokenizer(folder, run_tokenizer, key, bos_id)
        decoder, params = import_checkpoint(folder, longest=config.scoring.context)
        if config.scoring.unit == "token":
            require_rows(decoder.vocab_size, read_tokenizer(run_tokenizer), bos_id, key)
        else:
            load_own_tokenizer(folder, key, config.tokenizer.bos_token, decoder.vocab_size)
        return dataclasses.replace(decoder, compute_dtype=compute_dtype), params
    folder = directory.reference(name)
    if not (folder / "model.json").exists():
        raise UserError(
            f"no {name} reference model at {folder}: run the reference phase, or name a "
            f"Hugging Face checkpoint in reference.{name}.checkpoint"
        )
    decoder = read_description(folder, compute_dtype=compute_dtype)
    params = checkpoints.load_params(folder / "checkpoints", decoder)
    if decoder.vocab_size < special_tokens.vocab_size:
        raise UserError(
            f"reference.{name}: the model at {folder} knows {decoder.vocab_size} tokens, but "
            f"{directory.tokenizer} has {special_tokens.vocab_size}: both reference models must "
            "share the run's tokenizer"
        )
    return decoder, params


def model_digest(decoder: Decoder, params: Params) -> str:
    """A hash of a model's shape and weights that identifies it wherever its files are."""
    described = json.dumps(dataclasses.asdict(decoder), sort_keys=True)
    found = hashlib.blake2b(described.encode(), digest_size=16)
    for leaf in jax.tree.leaves(params):
        found.update(np.ascontiguousarray(leaf).data)
    return found.hexdigest()
