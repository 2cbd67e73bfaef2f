"""OLMo-core: a module that reads the stages' rows in order."""

from frame_jax.export.order.formats.notes import Files, own_rows_files
from frame_jax.export.order.trial_order import Trainer, TrialOrder, row_stages

DATA_FORMATS = ("npy",)

OLMO_CORE = '''# Curriculum {curriculum!r} for OLMo-core: the rows of every stage, in order.

from olmo_core.data import TokenizerConfig
from olmo_core.data.composable import (
    ComposableDataLoader,
    ComposableDataLoaderConfig,
    ConcatAndChunkInstanceSourceConfig,
)
from olmo_core.data.types import NumpyDatasetDType

DATA = {data!r}
FOLDERS = {folders}
STEPS = {steps}

tokenizer = TokenizerConfig(
    vocab_size={vocab_size}, bos_token_id={bos_id}, eos_token_id={eos_id}, pad_token_id={bos_id}
)
sources = [
    ConcatAndChunkInstanceSourceConfig.from_npy(
        f"{{DATA}}/{{folder}}/*.npy",
        tokenizer=tokenizer,
        dtype=NumpyDatasetDType.uint32,
        sequence_length={row},
        label=folder,
    )
    for folder in FOLDERS
]
config = ComposableDataLoaderConfig(
    tokenizer=tokenizer, global_batch_size={batch_size} * {row}, shuffle=False
)


def data_loader(work_dir: str, **distributed) -> ComposableDataLoader:
    """`distributed`: mesh or dp_process_group."""
    built = [source.build(work_dir) for source in sources]
    return config.build(*built, work_dir=work_dir, **distributed)
'''


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
