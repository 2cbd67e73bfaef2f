"""Megatron-LM: a blend and a launch for each stage."""

from frame_jax.export.order.formats.notes import Files, format_notes, shell_script
from frame_jax.export.order.trial_order import Trainer, TrialOrder, stage_spans

DATA_FORMATS = ("jsonl",)


def files(trial_order: TrialOrder, trainer: Trainer) -> Files:
    """Makes a blend file for each stage, the launches in order, and the script that tokenizes."""
    spans = stage_spans(trial_order, trainer, smooth=False)
    files: Files = {}
    lines = []
    for number, span in enumerate(spans, 1):
        name = f"blend-{number:02d}.txt"
        used = {quadrant: share for quadrant, share in span.mixture.items() if share > 0}
        blend = [
            f"{share} {trainer.data}/{quadrant}_text_document" for quadrant, share in used.items()
        ]
        files[name] = " ".join(blend) + "\n"
        lines.append(f"--data-args-path {name}  # {span.name}, ends at iteration {span.stop}")
    transitions = ",".join(str(span.stop) for span in spans[:-1])
    tokenizer = "--tokenizer-type HuggingFaceTokenizer --tokenizer-model tokenizer"
    program = (
        f'torchrun $TORCHRUN_ARGS "$MEGATRON/pretrain_gpt.py" $MODEL_ARGS {tokenizer} '
        '--load "$CHECKPOINTS" --save "$CHECKPOINTS" --split 100,0,0 --eval-iters 0 '
        + (f"--phase-transition-iterations {transitions} " if transitions else "")
        + f"--global-batch-size {trainer.batch_size} --seq-length {trainer.sequence_length} "
        f"--train-samples {spans[-1].stop * trainer.batch_size}"
    )
    files["train.sh"] = shell_script(*(f"{program} {line}" for line in lines))
    quadrants = " ".join(trial_order.schedule.quadrants)
    source = f'"{trainer.data}/$quadrant{trainer.suffix}"'
    files["tokenize.sh"] = shell_script(
        f"for quadrant in {quadrants}; do",
        f'  cat "{trainer.data}/$quadrant"/*{trainer.suffix} > {source}',
        f'  python3 "$MEGATRON/tools/preprocess_data.py" --input {source} \\',
        f'    --output-prefix "{trainer.data}/$quadrant" --append-eod \\',
        '    --workers "${WORKERS:-8}" \\',
        f"    {tokenizer}",
        "done",
    )
    files["NOTES.md"] = format_notes("megatron", trial_order, trainer, spans)
    return files
