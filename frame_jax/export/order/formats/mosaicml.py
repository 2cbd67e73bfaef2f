"""MosaicML streaming: a module that reads the stages' rows in order."""

from pathlib import Path

from frame_jax.export.order.formats.notes import Files, own_rows_files
from frame_jax.export.order.trial_order import Trainer, TrialOrder, row_stages

DATA_FORMATS = ("mds",)

MOSAICML = Path(__file__).with_suffix(".template").read_text("utf-8")


def files(trial_order: TrialOrder, trainer: Trainer) -> Files:
    """Makes a module with a StreamingDataset that reads the stages' rows in order."""
    remote = "://" in trainer.data
    stream = 'remote=f"{DATA}/{folder}", local=f"{CACHE}/{folder}"'
    module = MOSAICML.format(
        curriculum=trial_order.trial,
        data=trainer.data,
        folders=[folder for folder, *_ in row_stages(trial_order)],
        stream=stream if remote else 'local=f"{DATA}/{folder}"',
        cache='\nCACHE = "cache"' if remote else "",
        batch_size=trainer.batch_size,
    )
    text = f"""
`order.py` makes a StreamingDataset of one stream a stage (MDS folders; a sample's `tokens` are the
ids of a row of this run), in order, with `shuffle=False` and `num_canonical_nodes=1`: sample n is
row n of the training here, transitions included, and each batch of all devices together holds
consecutive rows, on any number of nodes. Train one epoch of it. Give every device as many sequences
that all together have {trainer.batch_size}. A row has {trainer.sequence_length + 1:,} ids of which
{trainer.sequence_length:,} are predicted: in LLM Foundry, `max_seq_len:
{trainer.sequence_length + 1}`, the streams of `order.py`, `shuffle: false` and
`num_canonical_nodes: 1`. Padding at the ends of rows is BOS
({trial_order.special_tokens.bos_id}); here it has no loss."""
    return own_rows_files(trial_order, trainer, module, text)
