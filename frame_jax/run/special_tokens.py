"""The tokens that start and end a document: chosen from a tokenizer, and stored with the run.

Each phase that frames, scores or writes documents reads them in the run directory.
"""

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from frame_jax.config.corpus import TokenizerConfig
from frame_jax.errors import UserError
from frame_jax.run.directory import RunDirectory, read_dataclass

BOS, EOS = "<|bos|>", "<|eos|>"  # of a tokenizer that is trained here

# Usual names, the first that a given tokenizer has.
# The last spelling has full-width bars and low blocks.
BOS_NAMES = (
    *(BOS, "<s>", "<bos>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>"),
    "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
)
EOS_NAMES = (
    *(EOS, "</s>", "<eos>", "[EOS]", "<|end_of_text|>", "<|endoftext|>"),
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)


@dataclass(frozen=True)
class SpecialTokens:
    """The ids that frame a document, `bos tokens eos`, and what else is known of the tokenizer.

    Attributes:
        bos_id: Starts a document, and fills up a row.
        notes: What to tell about it.
    """

    bos_id: int
    eos_id: int
    vocab_size: int
    notes: tuple[str, ...] = ()


class ChosenTokens(NamedTuple):
    """BOS and EOS of a given tokenizer, and why these were chosen."""

    bos: str
    eos: str
    bos_reason: str
    eos_reason: str


def choose_special_tokens(tokens: Container[str], config: TokenizerConfig) -> ChosenTokens:
    """Chooses the tokens that the settings name, or else those with a usual name.

    A tokenizer with only one of the two uses it for both.

    `tokens` are all tokens of the tokenizer in `config.path`.

    Raises:
        UserError: for a name that is no token, or a tokenizer that has neither.
    """
    bos, bos_reason = _find(tokens, config.bos_token, BOS_NAMES, "tokenizer.bos_token", config)
    eos, eos_reason = _find(tokens, config.eos_token, EOS_NAMES, "tokenizer.eos_token", config)
    if bos is None and eos is None:
        raise UserError(
            f"tokenizer.path: {config.path} has none of the usual tokens that start or end a text "
            f"({', '.join(BOS_NAMES + EOS_NAMES)}): name one in tokenizer.bos_token or "
            "tokenizer.eos_token"
        )
    return ChosenTokens(
        bos or str(eos),
        eos or str(bos),
        bos_reason if bos else "the token that ends a document, because no other was found",
        eos_reason if eos else "the token that starts a document, because no other was found",
    )


def _find(
    tokens: Container[str],
    asked: str | None,
    names: tuple[str, ...],
    key: str,
    config: TokenizerConfig,
) -> tuple[str | None, str]:
    if asked is not None and asked not in tokens:
        raise UserError(f"{key}: {config.path} has no token {asked!r}")
    if asked is not None:
        return asked, f"from {key}"
    return next((name for name in names if name in tokens), None), "found by its usual name"


def special_tokens_path(directory: RunDirectory) -> Path:
    """The file of a run's `SpecialTokens`; written last, so it says the tokenizer is there."""
    return directory.tokenizer.with_name("special_tokens.json")


def read_special_tokens(directory: RunDirectory) -> SpecialTokens:
    """Reads the ids that frame a document of this run.

    Raises:
        UserError: if the file is damaged.
    """
    return read_dataclass(special_tokens_path(directory), SpecialTokens)
