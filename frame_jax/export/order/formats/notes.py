"""What the formats share: YAML, scripts and NOTES.md.

Field names of all formats are those of the trainers' public sources, late 2026;
`tools/check_exports.py` feeds what is written to their own code. OLMo-core and MosaicML read the
rows of the run itself. The others tokenize and pack on their own, so that their rows differ from
the rows here; quadrants, order and lengths are the same.
"""

from typing import Any

import yaml

from frame_jax.export.order.trial_order import Span, Trainer, TrialOrder, stage_spans

Files = dict[str, str]


def as_yaml(value: Any) -> str:
    """Formats a value as YAML."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def format_notes(
    trial_order: TrialOrder, trainer: Trainer, text: str, spans: list[Span], where: str = ""
) -> str:
    """Writes NOTES.md: what the files are and how to use them.

    `text` is what is particular to the trainer, `where` says what belongs in the data folder; by
    default the quadrants' documents.
    """
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


def own_rows_files(trial_order: TrialOrder, trainer: Trainer, module: str, text: str) -> Files:
    """The files of a trainer that reads the run's own rows by means of `module`."""
    spans = stage_spans(trial_order, trainer, smooth=True)
    where = f"The rows of each stage belong in `{trainer.data}/<number of the stage>/`"
    notes = format_notes(trial_order, trainer, text, spans, where)
    return {"order.py": module, "NOTES.md": notes}
