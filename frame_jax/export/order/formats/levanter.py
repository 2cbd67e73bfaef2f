"""Levanter: one config whose mixture changes over the run."""

import yaml

from frame_jax.export.order.formats.notes import Files, format_notes
from frame_jax.export.order.trial_order import Trainer, TrialOrder, mixture_spans, stage_spans

DATA_FORMATS = ("jsonl", "parquet")

MIXTURE_PIECES = 128  # of a smooth curriculum, where a trainer follows a schedule by itself
LARGEST_BLOCK = 32768  # sequences; Levanter packs a block's indices into 16 bits


def files(trial_order: TrialOrder, trainer: Trainer) -> Files:
    """Makes a config whose data section has `train_weights` that change over the run."""
    spans = stage_spans(trial_order, trainer, smooth=True)
    # Levanter cuts shares down to whole rows of a block. Blocks that divide the batch leave none
    # unfinished at the end, and of a power of two, so that no share is a rounding error too small.
    block = min(trainer.batch_size & -trainer.batch_size, LARGEST_BLOCK)
    parts = mixture_spans(trial_order, trainer, MIXTURE_PIECES, block)
    config = {
        "data": {
            "tokenizer": "tokenizer",
            "cache_dir": "cache",
            "shuffle": True,
            "stop_strategy": "restart",
            "mixture_block_size": block,
            "components": {
                quadrant: {"source": {"type": "url", "train_urls": [f"{source}/*{trainer.suffix}"]}}
                for quadrant in trial_order.schedule.quadrants
                for source in [f"{trainer.data}/{quadrant}"]
            },
            "train_weights": [[span.first, span.mixture] for span in parts],
        },
        "train_seq_len": trainer.sequence_length,
        "trainer": {"train_batch_size": trainer.batch_size, "num_train_steps": parts[-1].stop},
    }
    return {
        "levanter.yaml": yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        "NOTES.md": format_notes("levanter", trial_order, trainer, spans),
    }
