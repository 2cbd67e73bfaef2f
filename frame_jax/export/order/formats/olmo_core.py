"""OLMo-core: a module that reads the stages' rows in order."""

from pathlib import Path

from frame_jax.export.order.formats.notes import Files, own_rows_files
from frame_jax.export.order.trial_order import Trainer, TrialOrder, row_stages

DATA_FORMATS = ("npy",)
NOTES = Path(__file__).with_suffix(".md").read_text("utf-8")
OLMO_CORE = Path(__file__).with_suffix(".template").read_text("utf-8")


def files(trial_order: TrialOrder, trainer: Trainer) -> Files:
    """Makes a module with the sources of every stage and a data loader that keeps their order."""
    steps = trial_order.schedule.rows // trainer.batch_size
    module = OLMO_CORE.format(
        curriculum=trial_order.trial,
        data=trainer.data,
        folders=[folder for folder, *_ in row_stages(trial_order)],
        row=trainer.sequence_length + 1,
        batch_size=trainer.batch_size,
        steps=steps,
        bos_id=trial_order.special_tokens.bos_id,
        eos_id=trial_order.special_tokens.eos_id,
        vocab_size=trial_order.special_tokens.vocab_size,
    )
    text = NOTES.format(
        trainer=trainer,
        ids=trainer.sequence_length + 1,
        bos_id=trial_order.special_tokens.bos_id,
        steps=steps,
        rest=trial_order.schedule.rows % trainer.batch_size,
    )
    return own_rows_files(trial_order, trainer, module, text)
