"""Scores a sample of documents once more under other reference models: the same ones at half of
their training and, where they are trained (`reference.replicas`), those of another seed.

Writes RUN/reliability/<models>/part-*.parquet, as RUN/scores/part-*. The partition compares both
(`quadrants/reliability.py`). [ours]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from frame_jax import checkpoints
from frame_jax.config.run import RunConfig
from frame_jax.parallel import processes
from frame_jax.run import progress
from frame_jax.run.directory import RunDirectory, list_parts
from frame_jax.run.phases import replica_name
from frame_jax.run.trial_record import load_trial_record
from frame_jax.scoring.documents import score_documents
from frame_jax.scoring.model_tokenizers import REFERENCE_NAMES, DocumentTexts, model_tokenizer
from frame_jax.scoring.score import load_reference
from frame_jax.scoring.score_parts import (
    make_passes,
    read_index,
    read_model_documents,
    spread_evenly,
    write_scores,
)


def score_sample(config: RunConfig, directory: RunDirectory) -> dict[str, Any]:
    """Scores evenly spaced documents of every part; what is there is kept. All processes call it.

    Returns:
        What the scores can be compared with: `half` of the training, a `replica`.
    """
    parts = list_parts(directory.tokens, ".parquet")
    found = other_references(config, directory)
    for name, references in found.items():
        folder = directory.reliability / name
        missing = [part for part in parts if not (folder / part.name).exists()]
        processes.barrier(f"reliability, {name}: parts listed")
        if missing:
            score_missing(config, directory, references, missing, folder)
        processes.barrier(f"reliability, {name}: parts written")
    return {"compared_with": list(found)}


def other_references(
    config: RunConfig, directory: RunDirectory
) -> dict[str, list[tuple[str, int | None]]]:
    """The pairs of models to compare with: of weak and strong each its name and its step.

    An imported model has neither an earlier checkpoint nor a replica, and stands in every pair. A
    run whose reference models kept nothing, because an older release trained them, has no `half`.
    """
    trained = [n for n in REFERENCE_NAMES if getattr(config.reference, n).checkpoint is None]
    found: dict[str, list[tuple[str, int | None]]] = {}
    halves = {name: load_trial_record(directory.reference(name)).steps // 2 for name in trained}
    if all(
        step in checkpoints.saved_steps(directory.reference(name) / "checkpoints")
        for name, step in halves.items()
    ):
        found["half"] = [(name, halves.get(name)) for name in REFERENCE_NAMES]
    if config.reference.replicas > 1:
        found["replica"] = [
            (replica_name(name) if name in trained else name, None) for name in REFERENCE_NAMES
        ]
    return found


def score_missing(
    config: RunConfig,
    directory: RunDirectory,
    references: list[tuple[str, int | None]],
    missing: list[Path],
    folder: Path,
) -> None:
    """Scores this process's share of the parts that have no scores in `folder`."""
    models = [load_reference(config, directory, *reference) for reference in references]
    readings = [model_tokenizer(config, directory, name) for name in REFERENCE_NAMES]
    passes = make_passes(config.scoring, models, readings)
    by_text = any(reading.tokenizer is not None for reading in readings)
    texts = DocumentTexts(config, directory) if by_text else None
    documents = -(-config.scoring.reliability // len(list_parts(directory.tokens, ".parquet")))
    own, show = processes.local_share(missing), processes.is_first()
    with progress.progress_bar(f"reliability, {folder.name}", len(own), "parts", show=show) as done:
        for part in own:
            index = read_index(part)
            index = index.take(spread_evenly(np.arange(len(index)), documents))
            scores = [
                score_documents(
                    each.scorer,
                    read_model_documents(part, index["row"].to_numpy(), each, texts),
                    bos_id=each.tokenizer.bos_id,
                    overlap=config.scoring.overlap,
                )
                for each in passes
            ]
            write_scores(folder / part.name, index, scores)
            done(1, part.name)
