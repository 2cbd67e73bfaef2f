"""MosaicML streaming: a module that reads the stages' rows in order."""

from pathlib import Path

from frame_jax.export.order.formats.notes import Files, own_rows_files
from frame_jax.export.order.trial_order import Trainer, TrialOrder, row_stages

DATA_FORMATS = ("mds",)
NOTES = Path(__file__).with_suffix(".md").read_text("utf-8")
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
    text = NOTES.format(
        trainer=trainer, ids=trainer.sequence_length + 1, bos_id=trial_order.special_tokens.bos_id
    )
    return own_rows_files(trial_order, trainer, module, text)
