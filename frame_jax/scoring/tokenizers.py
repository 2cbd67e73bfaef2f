"""Compares two tokenizer.json files: whether they give every text the same token ids.

PPL and PD compare the two reference models token by token, so both must read the same tokens.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from frame_jax.errors import UserError

# These decide, with the model, how text becomes ids. The other members (post_processor, decoder,
# padding, truncation) add or undo things that the corpus is tokenised without.
CUTTING = ("normalizer", "pre_tokenizer")
SHOWN = 3  # examples of a difference


def require_same_tokenizer(
    checkpoint: Path, run_tokenizer: Path, key: str, bos_id: int | None = None
) -> None:
    """Refuses a checkpoint whose tokenizer is not the one the corpus was tokenized with.

    `run_tokenizer` is RUN/tokenizer/tokenizer.json, or what it will be made of, `key` the setting
    that names the checkpoint, for the message; the checkpoint must know `bos_id`, too.
    """
    path = tokenizer_of(checkpoint, key)
    found = list(tokenizer_differences(read_tokenizer(path), read_tokenizer(run_tokenizer), bos_id))
    if found:
        remedy = (
            "Both reference models must share one tokenizer; set tokenizer.path to theirs in a new "
            "run directory, use models that share one, or have losses compared by the byte "
            "(scoring.unit: byte)"
        )
        if key.startswith("pretrain."):
            remedy = f"A model goes on with its own: set tokenizer.path to {path} in a new run"
        raise UserError(
            f"{key}: the tokenizer of {checkpoint} is not the run's ({run_tokenizer}): "
            f"{'; '.join(found)}. {remedy}"
        )


def tokenizer_of(checkpoint: Path, key: str) -> Path:
    """Finds the tokenizer.json of a Hugging Face checkpoint folder, which the setting `key` names.

    Raises:
        UserError: if it has none.
    """
    path = checkpoint / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{key}: {checkpoint} has no tokenizer.json, so it cannot be known whether it shares "
            "the run's tokenizer; write one with "
            "AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)"
        )
    return path


def read_tokenizer(path: Path) -> dict[str, Any]:
    """Parses a tokenizer.json, normalised by the installed `tokenizers` library.

    Versions spell merges in two ways and leave out what is as by default.

    Raises:
        UserError: if it is damaged.
    """
    try:
        found = json.loads(tokenizers.Tokenizer.from_file(str(path)).to_str())
    except Exception as error:  # the library raises nothing more precise
        raise UserError(f"{path} is damaged or of an unknown kind ({error})") from error
    found["model"].pop("dropout", None)  # nothing is tokenized with it here
    return found


def require_rows(
    vocab_size: int, tokenizer: dict[str, Any], bos_id: int, key: str, own: Path | None = None
) -> None:
    """Refuses a model whose embedding lacks a row for a token that a document may hold.

    Special tokens other than BOS never occur in text, so a `<pad>` beyond the last row is no harm.

    `vocab_size` is the number of rows; `tokenizer` is as `read_tokenizer` gives it, and `key` the
    setting that names the checkpoint, for the message, as is `own`, where the model's is not the
    run's.
    """
    special = special_token_texts(tokenizer)
    beyond = {
        token: index
        for token, index in token_ids(tokenizer).items()
        if index >= vocab_size and (token not in special or index == bos_id)
    }
    if beyond:
        examples = ", ".join(f"{token!r} is {index}" for token, index in [*beyond.items()][:SHOWN])
        whose = own or "the run's tokenizer"
        remedy = "put there the one" if own else "name in tokenizer.path the one"
        raise UserError(
            f"{key}: the model knows {vocab_size:,} tokens, but a document may hold "
            f"{len(beyond):,} others of {whose} ({examples}): {remedy} that the model was trained "
            "with. A token that is no text, such as one for padding, needs `special: true` in "
            "tokenizer.json"
        )


def special_token_texts(tokenizer: dict[str, Any]) -> set[str]:
    """Texts of the special tokens, which are never matched in a document's text."""
    return {added["content"] for added in tokenizer["added_tokens"] if added["special"]}


def tokenizer_differences(
    theirs: dict[str, Any], ours: dict[str, Any], bos_id: int | None = None
) -> Iterator[str]:
    """Yields each difference between two tokenizers that changes ids.

    A special token, the run's BOS apart, that only one of the two has changes none.

    Both are as `read_tokenizer` gives them; `bos_id` is what the run starts a document with.
    """
    kinds = theirs["model"]["type"], ours["model"]["type"]
    if kinds[0] != kinds[1]:
        yield f"it is {kinds[0]}, the run's is {kinds[1]}"
        return
    all_theirs, all_ours = token_ids(theirs), token_ids(ours)
    silent = special_token_texts(theirs)
    their_ids = {t: i for t, i in all_theirs.items() if t in all_ours or t not in silent}
    silent = special_token_texts(ours)
    our_ids = {
        t: i for t, i in all_ours.items() if t in all_theirs or t not in silent or i == bos_id
    }
    if their_ids != our_ids:
        yield from id_differences(their_ids, our_ids)
    their_words, our_words = added_token_rules(theirs), added_token_rules(ours)
    for special in ours["added_tokens"]:  # BOS and EOS are special in a run, whatever they were
        if special["special"]:
            their_words.pop(special["content"], None)
    if their_words != our_words:
        tokens = sorted({t for t, _ in their_words.items() ^ our_words.items()})
        yield f"added tokens are found in text by other rules ({', '.join(map(repr, tokens))})"
    pairs = [value["model"].get("merges") or [] for value in (theirs, ours)]
    if pairs[0] != pairs[1]:
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*pairs, strict=False))
        yield (
            f"it has {len(pairs[0]):,} merges, the run's {len(pairs[1]):,}, and only the first "
            f"{len(list(same)):,} agree"
        )
    for part in CUTTING:
        if theirs[part] != ours[part]:
            yield f"its {part} is not the same"
    rest = [value["model"] for value in (theirs, ours)]
    keys = sorted(k for k in rest[0] | rest[1] if rest[0].get(k) != rest[1].get(k))
    keys = [k for k in keys if k not in ("vocab", "merges") or kinds[0] == "Unigram"]
    if keys:
        yield f"its model differs in {', '.join(keys)}"


def id_differences(theirs: dict[str, int], ours: dict[str, int]) -> Iterator[str]:
    """Yields how two vocabularies differ."""
    if len(theirs) != len(ours):
        yield f"it has {len(theirs):,} tokens, the run's {len(ours):,}"
    moved = [token for token in theirs if token in ours and theirs[token] != ours[token]]
    if moved:
        examples = ", ".join(f"{t!r} is {theirs[t]}, not {ours[t]}" for t in moved[:SHOWN])
        yield f"{len(moved):,} tokens have other ids ({examples})"
    for label, tokens in (
        ("only it has", [t for t in theirs if t not in ours]),
        ("only the run has", [t for t in ours if t not in theirs]),
    ):
        if tokens:
            yield f"{label} {len(tokens):,} tokens ({', '.join(map(repr, tokens[:SHOWN]))})"


def token_ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Maps every token to its id, added tokens included."""
    vocab = tokenizer["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: (token, score) in the order of the ids
        vocab = {token: index for index, (token, _) in enumerate(vocab)}
    return vocab | {added["content"]: added["id"] for added in tokenizer["added_tokens"]}


def added_token_rules(tokenizer: dict[str, Any]) -> dict[str, tuple[bool, ...]]:
    """The non-special added tokens that are split off before all else, and their matching rules."""
    rules = ("single_word", "lstrip", "rstrip", "normalized")
    return {
        added["content"]: tuple(added[rule] for rule in rules)
        for added in tokenizer["added_tokens"]
        if not added["special"]
    }
