"""Levanter: one config whose mixture changes over the run."""

from __future__ import annotations

from frame_jax.export.order.formats.notes import Files, as_yaml, notes
from frame_jax.export.order.plan import Plan, Trainer, pieces, stages

READS = ("jsonl", "parquet")

PIECES = 128  # of a smooth curriculum, where a trainer follows a schedule by itself
LARGEST_BLOCK = 32768  # sequences; Levanter packs a block's indices into 16 bits


def files(plan: Plan, trainer: Trainer) -> Files:
    """A data section whose `train_weights` change over the run."""
    spans = stages(plan, trainer, smooth=True)
    # Levanter cuts shares down to whole rows of a block. Blocks that divide the batch leave none
    # unfinished at the end, and of a power of two, so that no share is a rounding error too small.
    block = min(trainer.batch_rows & -trainer.batch_rows, LARGEST_BLOCK)
    parts = pieces(plan, trainer, PIECES, block)
    config = {
        "data": {
            "tokenizer": "tokenizer",
            "cache_dir": "cache",
            "shuffle": True,
            "stop_strategy": "restart",
            "mixture_block_size": block,
            "components": {
                cell: {
                    "source": {
                        "type": "url",
                        "train_urls": [f"{trainer.data}/{cell}/*{trainer.suffix}"],
                    }
                }
                for cell in plan.schedule.cells
            },
            "train_weights": [[span.first, span.mixture] for span in parts],
        },
        "train_seq_len": trainer.sequence_length,
        "trainer": {
            "train_batch_size": trainer.batch_rows,
            "num_train_steps": parts[-1].stop,
        },
    }
    text = """
`levanter.yaml` holds the `data` section, the sequence length and the two trainer settings that
belong to it; merge it into your config and start `levanter.main.train_lm --config_path
levanter.yaml` in this folder. `train_weights` is a list of (first step, weights). Smooth
transitions are cut into pieces of constant weights, in whole rows of `mixture_block_size`, which
divides the batch: to change the batch, export again with --batch_rows."""
    return {"levanter.yaml": as_yaml(config), "NOTES.md": notes(plan, trainer, text, spans)}
