"""nanotron: a config and a launch for each stage."""

from pathlib import Path

from frame_jax.export.order.formats.notes import Files, as_yaml, format_notes
from frame_jax.export.order.trial_order import Trainer, TrialOrder, stage_spans

DATA_FORMATS = ("jsonl", "parquet")

DATATROVE = Path(__file__).with_suffix(".template").read_text("utf-8")


def files(trial_order: TrialOrder, trainer: Trainer) -> Files:
    """Makes a config for each stage, and the script that tokenizes."""
    spans = stage_spans(trial_order, trainer, smooth=True)
    listed = [
        {
            "name": f"{number} {span.name}",  # a name may not occur twice
            "start_training_step": span.first + 1,
            "data": {
                "dataset": {
                    "dataset_folder": [f"{trainer.data}/{quadrant}" for quadrant in used],
                    "dataset_weights": list(used.values()),
                },
                "num_loading_workers": 1,
                "seed": 42,
            },
        }
        for number, span in enumerate(spans, 1)
        for used in [{quadrant: share for quadrant, share in span.mixture.items() if share > 0}]
    ]
    files = {
        f"nanotron-{number:02d}.yaml": as_yaml(
            {
                "data_stages": listed[:number],
                "tokens": {"sequence_length": trainer.sequence_length, "train_steps": span.stop},
                "tokenizer": {"tokenizer_name_or_path": "tokenizer"},
                "checkpoints": {"save_final_state": True},
            }
        )
        for number, span in enumerate(spans, 1)
    }
    files["tokenize_documents.py"] = DATATROVE.format(
        cells=tuple(trial_order.schedule.quadrants),
        data=trainer.data,
        reader={".jsonl": "JsonlReader", ".parquet": "ParquetReader"}[trainer.suffix],
        pattern=f"*{trainer.suffix}",
    )
    text = f"""
Run `python3 tokenize_documents.py` in this folder: it tokenizes each quadrant's documents with
datatrove, beside them. Then one launch a stage: nanotron reads only the last of a config's
`data_stages`. `nanotron-01.yaml` and so on hold the stages up to each and the settings that belong
to them; merge each into your config and run `run_train.py --config-file` with one after the other,
each from the checkpoint that the one before leaves at its last step
(`checkpoints.resume_checkpoint_path`). Give the learning rate its own length
(`learning_rate_scheduler.lr_decay_steps`), or it would end with each launch. Steps count from 1.
The global batch is dp x micro_batch_size x batch_accumulation_per_replica: make it
{trainer.batch_size}. A quadrant goes on in a stage where the stage before left it. Inside a stage
the weights are constant: a smooth transition becomes a step between the stages' mean mixtures."""
    return {**files, "NOTES.md": format_notes(trial_order, trainer, text, spans)}
