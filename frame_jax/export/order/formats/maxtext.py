"""MaxText: a Grain mixture and a launch for each stage."""

import json
from typing import Any

from frame_jax.export.order.formats.notes import Files, format_notes, shell_script
from frame_jax.export.order.trial_order import Span, Trainer, TrialOrder, stage_spans

DATA_FORMATS = ("arrayrecord",)

# Grain refuses a weight of zero, and a component that is left out loses its place.
SMALLEST_SHARE = 1e-6


def files(trial_order: TrialOrder, trainer: Trainer) -> Files:
    """Makes a Grain mixture file for each stage, and the launches in order."""
    spans = stage_spans(trial_order, trainer, smooth=True)
    files: Files = {}
    lines = []
    for number, span in enumerate(spans, 1):
        name = f"mixture-{number:02d}.json"
        files[name] = json.dumps(document_mixture(trial_order, trainer, span), indent=2) + "\n"
        lines.append(
            f"grain_train_mixture_config_path={name} steps={span.stop} "
            f"learning_rate_schedule_steps={spans[-1].stop}  # {span.name}"
        )
    program = (
        'python3 -m maxtext.trainers.pre_train.train "$CONFIG" run_name="$RUN_NAME" '
        "dataset_type=grain grain_file_type=arrayrecord tokenizer_type=huggingface "
        "tokenizer_path=tokenizer add_bos=true add_eos=true use_truncation=false packing=true "
        "grain_packing_type=concat_then_split enable_data_shuffling=true "
        f"num_epoch={trial_order.schedule.epochs + 1} max_target_length={trainer.sequence_length}"
    )
    files["train.sh"] = shell_script(*(f"{program} {line}" for line in lines))
    files["NOTES.md"] = format_notes("maxtext", trial_order, trainer, spans)
    return files


def document_mixture(trial_order: TrialOrder, trainer: Trainer, span: Span) -> dict[str, Any]:
    """The shares of quadrants with which documents, instead of tokens, are drawn in a stage."""
    drawn = {
        quadrant: max(span.mixture[quadrant], SMALLEST_SHARE)
        * counts["documents"]
        / counts["tokens"]
        for quadrant, counts in trial_order.counts.items()
        if counts["documents"]
    }
    total = sum(drawn.values())
    return {
        quadrant: {
            "path": f"{trainer.data}/{quadrant}/*.arrayrecord",
            "weight": float(f"{rate / total:.6g}"),
        }
        for quadrant, rate in drawn.items()
    }
