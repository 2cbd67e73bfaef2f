"""OLMo-core: a module that reads the stages' rows in order."""

from frame_jax.export.order.formats.notes import Files, own_rows_files
from frame_jax.export.order.trial_order import Trainer, TrialOrder

DATA_FORMATS = ("npy",)


def files(trial_order: TrialOrder, trainer: Trainer) -> Files:
    """Makes a module with the sources of every stage and a data loader that keeps their order."""
    steps, rest = divmod(trial_order.schedule.rows, trainer.batch_size)
    return own_rows_files("olmo_core", trial_order, trainer, steps=steps, rest=rest)
