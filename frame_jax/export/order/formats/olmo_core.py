"""OLMo-core: a module that reads the stages' rows in order."""

from pathlib import Path

from frame_jax.export.order.formats.notes import Files, own_rows_files
from frame_jax.export.order.trial_order import Trainer, TrialOrder, row_stages

DATA_FORMATS = ("npy",)

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
    text = f"""
`order.py` builds OLMo-core's composable data loader (3.0 and later): one instance source a stage,
in order, and `shuffle=False`. Import `data_loader` and give it to your trainer, with
`max_duration=Duration.steps({steps})`. An instance is a row of this run, of
{trainer.sequence_length + 1:,} ids of which {trainer.sequence_length:,} are predicted, and instance
n is row n of the training here, transitions included. The files hold uint32 ids without a header.
Every row is in one file, and no file holds rows of two stages, so that older releases read them,
too (`NumpyFSLDatasetConfig`, whose loader must not shuffle). The last
{trial_order.schedule.rows % trainer.batch_size} rows, less than a batch, are not read. Padding at
the ends of rows is BOS ({trial_order.special_tokens.bos_id}); here it has no loss."""
    return own_rows_files(trial_order, trainer, module, text)
