"""MosaicML streaming: a module that reads the stages' rows in order."""

from frame_jax.export.order.formats.notes import Files, own_rows_files
from frame_jax.export.order.trial_order import Trainer, TrialOrder

DATA_FORMATS = ("mds",)


def files(trial_order: TrialOrder, trainer: Trainer) -> Files:
    """Makes a module with a StreamingDataset that reads the stages' rows in order."""
    stream, cache = 'local=f"{DATA}/{folder}"', ""
    if "://" in trainer.data:
        stream, cache = 'remote=f"{DATA}/{folder}", local=f"{CACHE}/{folder}"', '\nCACHE = "cache"'
    return own_rows_files("mosaicml", trial_order, trainer, stream=stream, cache=cache)
