"""Kind `tfds`: a prepared TensorFlow Datasets split, read without TensorFlow.

Only datasets prepared in a random-access format are read (`file_format="array_record"`), through
`tfds.data_source`. Nothing is ever downloaded or prepared here.
"""

from collections.abc import Iterator
from typing import Any

from frame_jax.config.corpus import SourceConfig
from frame_jax.config.paths import user_path
from frame_jax.corpus.documents import Record, document_from_fields
from frame_jax.corpus.sources.inputs import Input, RecordSlice
from frame_jax.errors import UserError
from frame_jax.files import is_remote

BATCH_RECORDS = 64


def list_inputs(config: SourceConfig) -> list[Input]:
    """One input: the split."""
    data, info = _open(config)
    size = info.splits[config.split].num_bytes
    name = f"{info.full_name}/{config.split}"
    return [Input(name, name, size, f"{name} {len(data)} {size}")]


def read_records(config: SourceConfig, item: Input, record_slice: RecordSlice) -> Iterator[Record]:
    """Yields documents and rejections of a slice's examples.

    Raises:
        UserError: where the examples have no field for the text.
    """
    data, info = _open(config)
    names = sorted(info.features)
    if not {config.text_field, config.text_field.split(".")[0]} & set(names):
        raise UserError(
            f"{item.path}: no feature {config.text_field!r} (corpus.sources: text_field); its "
            f"features are {', '.join(names)}: set text_field to one of them"
        )
    indices = range(record_slice.index, len(data), record_slice.count)
    for start in range(0, len(indices), BATCH_RECORDS):
        batch = indices[start : start + BATCH_RECORDS]
        for index, fields in zip(batch, data.__getitems__(list(batch)), strict=True):
            yield document_from_fields(
                {name: _plain(value) for name, value in fields.items()},
                config,
                default_id=f"{item.name}:{index + 1}",
                default_source=info.name,
                file=item.path,
                line=index + 1,
            )


def _plain(value: Any) -> Any:
    """Converts NumPy scalars to Python's, also inside features of features."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _open(config: SourceConfig) -> tuple[Any, Any]:
    """Opens the split's examples, by index, and the dataset's info."""
    import tensorflow_datasets as tfds

    where = f"in {config.path}" if config.path else "in the default data directory"
    dataset = f"corpus.sources: the TFDS dataset {config.name!r} {where}"
    prepare = 'prepare it with download_and_prepare(file_format="array_record")'
    folder = config.path
    if folder is not None and not is_remote(folder):
        folder = str(user_path(folder))
    try:
        builder = tfds.builder(config.name, data_dir=folder)
        if not builder.is_prepared():
            raise UserError(f"{dataset} is not prepared: {prepare}")
        data = tfds.data_source(config.name, split=config.split, data_dir=folder, download=False)
    except (tfds.core.DatasetNotFoundError, AssertionError) as error:
        raise UserError(
            f"corpus.sources: no prepared TFDS dataset {config.name!r} {where}: correct `name` "
            f'(such as "my_dataset:1.0.0") and `path`, or {prepare}'
        ) from error
    except NotImplementedError as error:
        raise UserError(f"{dataset} has no random access: {prepare}") from error
    except (ValueError, KeyError) as error:
        raise UserError(
            f"{dataset} has no split {config.split!r}, only {', '.join(builder.info.splits)}: "
            "correct `split`"
        ) from error
    return data, builder.info
