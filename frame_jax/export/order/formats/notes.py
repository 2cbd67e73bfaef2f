"""What the formats share: scripts and NOTES.md.

Field names of all formats are those of the trainers' public sources, late 2026;
`tools/check_exports.py` feeds what is written to their own code. OLMo-core and MosaicML read the
rows of the run itself. The others tokenize and pack on their own, so that their rows differ from
the rows here; quadrants, order and lengths are the same.
"""

from pathlib import Path
from typing import Any

from frame_jax.export.order.trial_order import Span, Trainer, TrialOrder, row_stages, stage_spans

Files = dict[str, str]


def fill_text(file: str, trial_order: TrialOrder, trainer: Trainer, **values: Any) -> str:
    """Fills in a text of that name beside this module, by `order`, `trainer` and other values."""
    text = Path(__file__).with_name(file).read_text("utf-8")
    return text.format(order=trial_order, trainer=trainer, **values)


def format_notes(
    name: str,
    trial_order: TrialOrder,
    trainer: Trainer,
    spans: list[Span],
    where: str = "",
    **values: Any,
) -> str:
    """Writes NOTES.md: what the files of the format `name` are and how to use them.

    `where` says what belongs in the data folder; by default the quadrants' documents.
    """
    text = fill_text(f"{name}.md", trial_order, trainer, **values)
    quadrants = list(spans[0].mixture)
    stages = [
        f"| stage | from step | to step | {' | '.join(quadrants)} |",
        f"|---|---:|---:|{'---:|' * len(quadrants)}",
    ]
    for span in spans:
        shares = " | ".join(f"{span.mixture[quadrant]:.3f}" for quadrant in quadrants)
        stages.append(f"| {span.name} | {span.first:,} | {span.stop:,} | {shares} |")
    table = "\n".join(stages)
    where = where or f"The documents of each quadrant belong in `{trainer.data}/<quadrant>/`"
    return (
        f"# Curriculum {trial_order.trial}\n\n{text.strip()}\n\n{table}\n\n"
        f"Steps are of {trainer.batch_size:,} sequences of {trainer.sequence_length:,} tokens, "
        "counted with the run's tokenizer, which is in `tokenizer/`.\n"
        f"{where}; `--shards` writes them.\n"
        "Use one learning-rate schedule over the whole run, constant or warmup-stable-decay, not "
        "one for each stage.\n"
    )


def shell_script(*commands: str) -> str:
    """Wraps commands in a shell script that runs in its own folder."""
    return "\n".join(
        ["#!/usr/bin/env bash", "set -euo pipefail", 'cd "$(dirname "$0")"', *commands, ""]
    )


def own_rows_files(name: str, trial_order: TrialOrder, trainer: Trainer, **values: Any) -> Files:
    """The files of a format whose trainer reads the run's own rows by means of a module."""
    values["folders"] = [folder for folder, *_ in row_stages(trial_order)]
    values["ids"] = trainer.sequence_length + 1
    spans = stage_spans(trial_order, trainer, smooth=True)
    where = f"The rows of each stage belong in `{trainer.data}/<number of the stage>/`"
    return {
        "order.py": fill_text(f"{name}.template", trial_order, trainer, **values),
        "NOTES.md": format_notes(name, trial_order, trainer, spans, where, **values),
    }
