"""The scoring phase: token shards in, NLL of every document under both reference models out.

Reads RUN/tokens/part-*, writes RUN/scores/part-*.parquet with the same names (`score_parts.py`),
models.json with digests of the models, and summary.json with totals.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from frame_jax import checkpoints
from frame_jax.config.run import RunConfig
from frame_jax.errors import UserError, print_warning
from frame_jax.files import is_checkpoint, local_copy
from frame_jax.models.hugging_face.weights import import_checkpoint
from frame_jax.models.transformer import Decoder, Params, read_description
from frame_jax.parallel import processes
from frame_jax.run.directory import RunDirectory, list_parts, read_json, write_json
from frame_jax.run.map_parts import missing
from frame_jax.run.phases import REFERENCES, replica_name
from frame_jax.run.special_tokens import read_special_tokens
from frame_jax.scoring.checks import check_imported, long_context_warning
from frame_jax.scoring.model_tokenizers import bos_messages, model_tokenizer, read_index
from frame_jax.scoring.running_totals import weak_is_better_warning
from frame_jax.scoring.score_parts import ScoringPass, score_parts
from frame_jax.scoring.scorer import Scorer

Reference = tuple[str, int | None]  # the name of a model, and the step of its checkpoint


def score_corpus(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    """Scores every part that has no scores yet; every process calls it.

    Returns:
        documents, predicted_tokens, the mean NLL of each model over all parts, documents whose
        PD is negative, and what each model with its own tokenizer starts documents with and what
        makes the scores mean little (`warnings`).

    Raises:
        UserError: for a missing or unfit reference model, one worse than the uniform
            distribution, one that is the other, or one that is not what the other parts were
            scored with.
    """
    parts = list_parts(directory.tokens, ".parquet")
    left = [parts[i] for i in missing(directory.scores / part.name for part in parts)]
    models, summary = directory.scores / "models.json", directory.scores / "summary.json"
    if left:
        passes, found = load_passes(config, directory, [(name, None) for name in REFERENCES])
        if len(set(found.values())) == 1:
            raise UserError(
                "reference.weak and reference.strong hold the same weights, so the perplexity "
                "difference of every document would be 0: the weak model must be a smaller or a "
                "less trained one"
            )
        if processes.is_first() and len(left) == len(parts):
            write_json(models, found)
        processes.barrier("score: models known")
        require_same_models(models, found)
        score_parts(config, directory, passes, left, directory.scores)
    if config.scoring.reliability > 0:
        score_under_others(config, directory, "half")
    if processes.is_first():
        found = scores_summary(directory, parts, config.scoring.unit)
        warnings = list(score_warnings(config, found, parts))
        messages = [*bos_messages(config), *warnings]  # the first when the run began
        write_json(summary, {**found, "warnings": messages})
        for line in warnings:
            print_warning(line)
    processes.barrier("score: summed up")
    return read_json(summary)  # so that one process alone reads all scores


def score_under_others(config: RunConfig, directory: RunDirectory, name: str) -> dict[str, Any]:
    """Scores a sample of documents once more, for the partition to compare both [ours]: under the
    reference models at `half` of their training, their `replica`, or a `third` in the strong one's
    place.

    Writes RUN/reliability/NAME/part-*.parquet, as RUN/scores/part-*; what is there is kept. Every
    process calls it.

    Returns:
        How many models took the place of reference models.

    Raises:
        UserError: as `score_corpus`, but for models that are alike.
    """
    parts, folder = list_parts(directory.tokens, ".parquet"), directory.reliability / name
    others = other_references(config, directory, name)
    left = [parts[i] for i in missing(folder / part.name for part in parts)]
    if others and left:
        named = [others.get(model, (model, None)) for model in REFERENCES]
        passes, found = load_passes(config, directory, named)
        shared = {model: digest for model, digest in found.items() if model not in others}
        require_same_models(directory.scores / "models.json", shared)
        most = -(-config.scoring.reliability // len(parts))
        # At half of its training a model may still be worse than a guess.
        check = name != "half"
        score_parts(config, directory, passes, left, folder, most=most, check=check)
    if directory.partition.exists():
        again = "these scores are compared when the quadrants are made again (--redo partition)"
        processes.print_notes([f"scoring.reliability: {again}"])
    return {"models": len(others)}


def other_references(config: RunConfig, directory: RunDirectory, name: str) -> dict[str, Reference]:
    """What takes the place of which reference model: no half or replica that of an imported one, no
    half where an older release trained them."""
    if name == "third":
        return {"strong": ("third", None)}
    trained = config.reference.trained
    if name == "replica":
        return {model: (replica_name(model), None) for model in trained}
    saved = {
        model: checkpoints.saved_steps(directory.reference(model) / "checkpoints")
        for model in trained
    }
    halves = {model: (model, steps[-1] // 2) for model, steps in saved.items() if steps}
    kept = all(step > 0 and step in saved[model] for model, step in halves.values())
    return dict(halves) if kept else {}


def score_warnings(config: RunConfig, found: dict[str, Any], parts: list[Path]) -> Iterator[str]:
    """Yields a warning for everything in a `scores_summary` that makes scores of little use."""
    mostly_negative = 2 * found["negative_pd"] > found["documents"]
    if mostly_negative or found["mean_nll_weak"] < found["mean_nll_strong"]:
        yield weak_is_better_warning(
            f"{found['negative_pd']:,} of {found['documents']:,} documents have a negative PD"
        )
    if (warning := long_context_warning(config)) is not None:
        rows = config.reference.rows.sequence_length
        lengths = (read_index(part, "tokens")["tokens"] for part in parts)
        longer = sum(pc.sum(pc.greater(each, rows)).as_py() or 0 for each in lengths)
        if longer:
            yield f"{longer:,} of {found['documents']:,} documents are longer. {warning}"


def require_same_models(path: Path, found: dict[str, str]) -> None:
    """Refuses to continue scores with other models than those that began them.

    Settings name an imported checkpoint by its path, where other weights may lie by now.

    Raises:
        UserError: naming the model that differs.
    """
    begun = read_json(path) if path.exists() else found
    for name in found:
        if begun[name] != found[name]:
            raise UserError(
                f"reference.{name}: its weights or its tokenizer are not those that the parts in "
                f"{path.parent} were scored with. Put those back, or score everything again: "
                "--redo score"
            )


def scores_summary(directory: RunDirectory, parts: list[Path], unit: str) -> dict[str, Any]:
    """Totals over all scores; means are per token, or per byte where that is the unit."""
    counted = "predicted_tokens" if unit == "token" else "bytes"
    totals, negative = {"documents": 0, counted: 0, "nll_weak": 0.0, "nll_strong": 0.0}, 0
    for part in parts:
        table = pq.read_table(directory.scores / part.name, columns=list(totals)[1:])
        totals["documents"] += table.num_rows
        negative += pc.sum(pc.less(table["nll_weak"], table["nll_strong"])).as_py() or 0
        for name in table.column_names:
            totals[name] += pc.sum(table[name]).as_py() or 0
    means = {
        f"mean_nll_{name}": totals.pop(f"nll_{name}") / max(totals[counted], 1)
        for name in REFERENCES
    }
    return totals | means | {"negative_pd": negative}


def load_passes(
    config: RunConfig, directory: RunDirectory, named: Sequence[Reference]
) -> tuple[list[ScoringPass], dict[str, str]]:
    """Loads what scores as the weak and as the strong model: both in one pass or, where losses are
    compared by the byte, each in its own; and, by these two words, a digest of each.

    Raises:
        UserError: as `load_reference`.
    """
    names = [name for name, _ in named]
    models = [load_reference(config, directory, *each) for each in named]
    readings = [model_tokenizer(config, directory, name) for name in names]
    passes = [
        ScoringPass(tuple(names[own]), Scorer(models[own], config.scoring), readings[own][0])
        for own in ([slice(0, 2)] if config.scoring.unit == "token" else [slice(0, 1), slice(1, 2)])
    ]
    digests = (model_digest(*m) + own.digest for m, own in zip(models, readings, strict=True))
    return passes, dict(zip(REFERENCES, digests, strict=True))


def load_reference(
    config: RunConfig, directory: RunDirectory, name: str, step: int | None = None
) -> tuple[Decoder, Params]:
    """Loads a reference model, of one trained here by default the last checkpoint; parameters are
    NumPy arrays. All processes call it.

    Raises:
        UserError: if it is missing, cannot be imported or does not fit the run's tokenizer.
    """
    compute_dtype, special_tokens = config.scoring.compute_dtype, read_special_tokens(directory)
    if name in config.reference.imported:
        check_imported(config, directory, name, tokenizer_anew=False)
        folder = local_copy(config.reference.imported[name][1], is_checkpoint)
        decoder, params = import_checkpoint(folder, longest=config.scoring.context)
        return dataclasses.replace(decoder, compute_dtype=compute_dtype), params
    folder = directory.reference(name)
    if not (folder / "model.json").exists():
        raise UserError(
            f"no {name} reference model at {folder}: run the reference phase, or name a "
            f"Hugging Face checkpoint in reference.{name}.checkpoint"
        )
    decoder = read_description(folder, compute_dtype=compute_dtype)
    params = checkpoints.load_params(folder / "checkpoints", decoder, step)
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
