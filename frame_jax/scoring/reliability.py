"""Scores a sample of documents once more under other reference models: the same ones at half of
their training and, where they are trained (`reference.replicas`), those of another seed.

Writes RUN/reliability/{half,replica}/part-*.parquet, as RUN/scores/part-*. The partition compares
both (`quadrants/reliability.py`). [ours]
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from frame_jax import checkpoints
from frame_jax.config.run import RunConfig
from frame_jax.parallel import processes
from frame_jax.run import progress
from frame_jax.run.directory import RunDirectory, list_parts
from frame_jax.run.phases import REFERENCES, replica_name
from frame_jax.scoring import score_parts
from frame_jax.scoring.documents import score_documents
from frame_jax.scoring.model_tokenizers import DocumentTexts

Reference = tuple[str, int | None]  # the name of a model, and the step of its checkpoint


def other_references(config: RunConfig, directory: RunDirectory, name: str) -> dict[str, Reference]:
    """What takes the place of each reference model that is trained here; an imported one has
    neither an earlier checkpoint nor a replica. Nothing where an older release, which kept no half,
    trained them."""
    trained = [n for n in REFERENCES if getattr(config.reference, n).checkpoint is None]
    if name == "replica":
        return {model: (replica_name(model), None) for model in trained}
    saved = {
        model: checkpoints.saved_steps(directory.reference(model) / "checkpoints")
        for model in trained
    }
    halves = {model: (model, steps[-1] // 2) for model, steps in saved.items() if steps}
    kept = all(step > 0 and step in saved[model] for model, step in halves.values())
    return dict(halves) if kept else {}


def score_sample(
    config: RunConfig,
    directory: RunDirectory,
    passes: Sequence[score_parts.ScoringPass],
    parts: list[Path],
    folder: Path,
) -> None:
    """Scores evenly spaced documents of each of this process's parts (paths of token tables)."""
    by_text = any(each.tokenizer.tokenizer is not None for each in passes)
    texts = DocumentTexts(config, directory) if by_text else None
    documents = -(-config.scoring.reliability // len(list_parts(directory.tokens, ".parquet")))
    title, show = f"score, {folder.name}", processes.is_first()
    with progress.progress_bar(title, len(parts), "parts", show=show) as update:
        for part in parts:
            index = score_parts.read_index(part)
            index = index.take(score_parts.spread_evenly(np.arange(len(index)), documents))
            scores = [
                score_documents(
                    each.scorer,
                    # Texts from the corpus come for whole parts alone; the tokens' are near enough.
                    score_parts.read_model_documents(
                        part, index["row"].to_numpy(), each, texts, decoded=True
                    ),
                    bos_id=each.tokenizer.bos_id,
                    overlap=config.scoring.overlap,
                )
                for each in passes
            ]
            score_parts.write_scores(folder / part.name, index, scores)
            update(1, part.name)
