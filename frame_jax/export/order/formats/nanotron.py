"""nanotron: a config and a launch for each stage."""

from frame_jax.export.order.formats.notes import Files, as_yaml, fill_text, format_notes
from frame_jax.export.order.trial_order import Trainer, TrialOrder, stage_spans

DATA_FORMATS = ("jsonl", "parquet")


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
    files["tokenize_documents.py"] = fill_text(
        "nanotron.template",
        trial_order,
        trainer,
        reader={".jsonl": "JsonlReader", ".parquet": "ParquetReader"}[trainer.suffix],
        pattern=f"*{trainer.suffix}",
    )
    return {**files, "NOTES.md": format_notes("nanotron", trial_order, trainer, spans)}
