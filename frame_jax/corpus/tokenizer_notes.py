"""Messages about the run's tokenizer, for the terminal and the phase's summary."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from frame_jax.config.run import RunConfig
from frame_jax.corpus.tokenizer import Tokenizer
from frame_jax.errors import UserError
from frame_jax.files import is_checkpoint, local_copy
from frame_jax.run.special_tokens import ChosenTokens


def tokenizer_messages(
    config: RunConfig, tokenizer: Tokenizer, chosen: ChosenTokens
) -> Iterator[str]:
    """Says which BOS and EOS were chosen and why, which files name another, and what a text loses.

    Raises:
        UserError: for a damaged file beside the tokenizer or a checkpoint.
    """
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    yield (
        f"documents start with {chosen.bos!r} (id {bos}), {chosen.bos_reason}, and end with "
        f"{chosen.eos!r} (id {eos}), {chosen.eos_reason}"
    )
    if config.tokenizer.path is not None:
        for file, named in bos_tokens_named_by_files(config):
            yield from other_bos_messages(tokenizer, chosen, file, named)
    if tokenizer.strips_blank:
        yield (
            "a document that begins with exactly one blank loses it: this tokenizer gives it the "
            "ids of the same text without"
        )


def other_bos_messages(
    tokenizer: Tokenizer, chosen: ChosenTokens, file: Path, named: int | str
) -> Iterator[str]:
    """Says that a file names another BOS, an id or a token, than the chosen one."""
    token = named if isinstance(named, str) else tokenizer.id_to_token(named)
    if token is None or tokenizer.token_to_id(token) is None:
        yield f"{file} names a start of text that the tokenizer does not have: {named!r}"
    elif token != chosen.bos:
        yield (
            f"{file} names another start of text, {token!r} (id {tokenizer.token_to_id(token)}): a "
            f"model is best scored with what it was trained on; tokenizer.bos_token: {token!r} "
            "takes it"
        )


def bos_tokens_named_by_files(config: RunConfig) -> Iterator[tuple[Path, int | str]]:
    """Yields (file, BOS as an id or a token) for each file beside a tokenizer or checkpoint that
    names one."""
    folders = [local_copy(str(config.tokenizer.path)).parent]  # of a remote one, this file alone
    if config.scoring.unit == "token":  # by the byte, a model reads with its own tokenizer
        for reference in (config.reference.weak, config.reference.strong):
            if reference.checkpoint is not None:
                folders.append(local_copy(reference.checkpoint, is_checkpoint))
    for folder in dict.fromkeys(folders):
        yield from bos_tokens_named_in(folder)


def bos_tokens_named_in(folder: Path) -> Iterator[tuple[Path, int | str]]:
    """(file, BOS as an id or a token) for each file of a model's or tokenizer's folder that names
    one."""
    token = read_json_object(folder / "tokenizer_config.json").get("bos_token")
    if isinstance(token, dict):  # an added token with its rules
        token = token.get("content")
    if isinstance(token, str):
        yield folder / "tokenizer_config.json", token
    token_id = read_json_object(folder / "config.json").get("bos_token_id")
    if isinstance(token_id, int):
        yield folder / "config.json", token_id


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file.

    Raises:
        UserError: if it is not JSON.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); fetch it again") from error
    return value if isinstance(value, dict) else {}
