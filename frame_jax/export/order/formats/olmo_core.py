"""OLMo-core: a module that reads the stages' rows in order."""

from __future__ import annotations

from frame_jax.export.order.formats.notes import Files, notes, rows_in
from frame_jax.export.order.plan import Plan, Trainer, row_stages, stages

READS = ("npy",)

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
    tokenizer=tokenizer, global_batch_size={batch_rows} * {row}, shuffle=False
)


def data_loader(work_dir: str, **distributed) -> ComposableDataLoader:
    """`distributed`: mesh or dp_process_group."""
    built = [source.build(work_dir) for source in sources]
    return config.build(*built, work_dir=work_dir, **distributed)
'''


def files(plan: Plan, trainer: Trainer) -> Files:
    """A module with the sources of every stage and a data loader that keeps their order."""
    steps = plan.schedule.rows // trainer.batch_rows
    module = OLMO_CORE.format(
        curriculum=plan.curriculum,
        data=trainer.data,
        folders=[folder for folder, *_ in row_stages(plan)],
        row=trainer.sequence_length + 1,
        batch_rows=trainer.batch_rows,
        steps=steps,
        **{name: plan.special[name] for name in ("bos_id", "eos_id", "vocab_size")},
    )
    text = f"""
`order.py` builds OLMo-core's composable data loader (3.0 and later): one instance source a stage,
in order, and `shuffle=False`. Import `data_loader` and give it to your trainer, with
`max_duration=Duration.steps({steps})`. An instance is a row of this run, of
{trainer.sequence_length + 1:,} ids of which {trainer.sequence_length:,} are predicted, and instance
n is row n of the training here, transitions included. The files hold uint32 ids without a header.
Every row is in one file, and no file holds rows of two stages, so that older releases read them,
too (`NumpyFSLDatasetConfig`, whose loader must be told not to shuffle). The last
{plan.schedule.rows % trainer.batch_rows} rows, less than a batch, are not read. Padding at the ends
of rows is BOS ({plan.special["bos_id"]}); here it has no loss."""
    spans = stages(plan, trainer, smooth=True)
    return {"order.py": module, "NOTES.md": notes(plan, trainer, text, spans, rows_in(trainer))}
