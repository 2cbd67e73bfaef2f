"""Two tokenizer.json in, the ways in which they cut or number text differently out.

PPL and PD compare the two reference models token by token, so both must read the same tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from frame_jax.errors import UserError
from frame_jax.run_directory import read_json

# These decide, with the model, how text becomes ids. The other members (post_processor, decoder,
# padding, truncation) add or undo things that the corpus is tokenised without.
CUTTING = ("normalizer", "pre_tokenizer")
SHOWN = 3  # examples of a difference


def require_same_tokenizer(checkpoint: Path, run_tokenizer: Path, key: str) -> None:
    """Raises UserError unless a checkpoint reads the tokens that the corpus was made into.

    Args:
        checkpoint: A Hugging Face checkpoint folder.
        run_tokenizer: RUN/tokenizer/tokenizer.json.
        key: The setting that names the checkpoint, for the message.
    """
    path = checkpoint / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{key}: {checkpoint} has no tokenizer.json, so it cannot be known whether it shares "
            "the run's tokenizer; write one with "
            "AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)"
        )
    found = list(differences(read_json(path), read_json(run_tokenizer)))
    if found:
        raise UserError(
            f"{key}: the tokenizer of {checkpoint} is not the run's ({run_tokenizer}): "
            f"{'; '.join(found)}. Both reference models must share one tokenizer; set "
            "tokenizer.path to theirs in a new run directory, or use models that share one"
        )


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> Iterator[str]:
    """Each difference between two parsed tokenizer.json that changes ids, in words."""
    kinds = theirs["model"]["type"], ours["model"]["type"]
    if kinds[0] != kinds[1]:
        yield f"it is {kinds[0]}, the run's is {kinds[1]}"
        return
    their_ids, our_ids = token_ids(theirs), token_ids(ours)
    if their_ids != our_ids:
        yield from id_differences(their_ids, our_ids)
    pairs = merges(theirs), merges(ours)
    if pairs[0] != pairs[1]:
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*pairs, strict=False))
        yield (
            f"it has {len(pairs[0]):,} merges, the run's {len(pairs[1]):,}, and only the first "
            f"{len(list(same)):,} agree"
        )
    for part in CUTTING:
        if essence(theirs.get(part)) != essence(ours.get(part)):
            yield f"its {part} is not the same"
    rest = [essence(value["model"]) for value in (theirs, ours)]
    keys = sorted(k for k in rest[0] | rest[1] if rest[0].get(k) != rest[1].get(k))
    keys = [k for k in keys if k not in ("vocab", "merges") or kinds[0] == "Unigram"]
    if keys:
        yield f"its model differs in {', '.join(keys)}"


def id_differences(theirs: dict[str, int], ours: dict[str, int]) -> Iterator[str]:
    """How two vocabularies differ."""
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
    """Every token and its id, added tokens included."""
    vocab = tokenizer["model"]["vocab"]
    if isinstance(vocab, list):  # Unigram: (token, score) in the order of the ids
        vocab = {token: index for index, (token, _) in enumerate(vocab)}
    return vocab | {added["content"]: added["id"] for added in tokenizer.get("added_tokens") or ()}


def merges(tokenizer: dict[str, Any]) -> list[tuple[str, ...]]:
    """BPE merges in either of their two spellings, "a b" and ["a", "b"]."""
    listed = tokenizer["model"].get("merges") or []
    return [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in listed]


def essence(value: Any) -> Any:
    """A setting without what is off, which some versions write and others leave out."""
    if isinstance(value, dict):
        inner = {key: essence(item) for key, item in value.items()}
        return {key: item for key, item in inner.items() if item not in (None, False)}
    return [essence(item) for item in value] if isinstance(value, list) else value
