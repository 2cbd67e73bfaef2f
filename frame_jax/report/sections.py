"""Makes the parts of a page: tables and choices."""

import itertools
from collections.abc import Sequence

from frame_jax.evaluation.results import HeldOutLoss, WeightsResult
from frame_jax.models.flops import training_flops_per_token
from frame_jax.models.transformer import Decoder
from frame_jax.report.figures import ARM_COLOURS
from frame_jax.report.html import Html, join_html, table, tag
from frame_jax.report.study_results import DASH, StageLosses, number, si
from frame_jax.report.training_curves import TrainingRun, TrainingSpeed
from frame_jax.run.partition_record import QuadrantContents


def arm_buttons(arms: Sequence[str]) -> Html:
    """The legend of all figures of arms; pressing a name shows or hides the arm everywhere."""
    colours = itertools.cycle(ARM_COLOURS)
    buttons = (
        tag("button", arm, type="button", data_arm=arm, aria_pressed="true", style=f"--arm: {c}")
        for arm, c in zip(arms, colours, strict=False)
    )
    label = "Show or hide orders in the figures"
    return tag("div", *buttons, class_="arms", role="group", aria_label=label)


def slice_choice(labels: Sequence[str]) -> Html:
    """The choice of what the held-out figures show."""
    options = (tag("option", label) for label in labels)
    choice = tag("select", *options, data_signal="held_out_part", autocomplete="off")
    return tag("p", tag("label", "Part of the held-out split ", choice))


def drops_table(stages: Sequence[StageLosses]) -> Html:
    """The training and the held-out loss before and after each stage of one arm begins."""
    rows = [
        [
            f"{losses.stage} begins",
            f"{losses.step:,}",
            *(number(loss, ".3f") for loss in losses.training),
            _fall(*losses.training),
            *(
                DASH if loss is None else f"{loss:.4f} ({step:,})"
                for loss, step in zip(losses.held_out, losses.held_out_steps, strict=True)
            ),
            _fall(*losses.held_out),
        ]
        for losses in stages
    ]
    header = ["", "at step", "training loss before", "after", "drop"]
    header += ["held-out loss before (step)", "after (step)", "drop"]
    return table(header, rows)


def _fall(before: float | None, after: float | None) -> str:
    return DASH if before is None or after is None else f"{before - after:+.3f}"


def held_out_table(measured: dict[str, WeightsResult]) -> Html:
    """Losses of weights, by name, on every slice of the held-out split; the best in bold."""
    rows = []
    for name in dict.fromkeys(name for weights in measured.values() for name in weights.slices):
        losses = [weights.slices.get(name) for weights in measured.values()]
        present = [loss for loss in losses if loss is not None]
        best = min(present, key=lambda loss: loss.nll_per_token)
        cells = [DASH if loss is None else _loss_cell(loss, best) for loss in losses]
        # Its size is the same for all.
        rows.append([name, *cells, f"{best.documents:,}", f"{best.predicted_tokens:,}"])
    return table(["held-out part", *measured, "documents", "tokens"], rows)


def _loss_cell(loss: HeldOutLoss, best: HeldOutLoss) -> Html:
    nll = tag("span", f"{loss.nll_per_token:.4f}", class_="best" if loss is best else None)
    return join_html([nll, f" ({loss.bits_per_byte:.3f})"])


def quadrant_table(
    quadrants: dict[str, QuadrantContents], meanings: dict[str, str], names: tuple[str, str]
) -> Html:
    """What each quadrant holds."""
    rows = [
        [
            f"{name}{meanings.get(name, '')}",
            f"{quadrant.documents:,}",
            f"{quadrant.tokens:,}",
            number(quadrant.ppl, ".2f"),
            number(quadrant.pd, "+.4f"),
            f"{quadrant.held_out_documents:,}",
        ]
        for name, quadrant in quadrants.items()
    ]
    numbers = [names[0], f"mean {names[1]}"]
    return table(["quadrant", "documents", "tokens", *numbers, "held-out documents"], rows)


def models_table(models: Sequence[tuple[TrainingRun, Decoder, TrainingSpeed]]) -> Html:
    """What was trained and how fast: parameters, tokens, final loss, speed, MFU, goodput."""
    rows = []
    for run, decoder, speed in models:
        length, rate = run.record.sequence_length, speed.tokens_per_second
        flops = training_flops_per_token(decoder, length)
        rows.append(
            [
                run.name,
                f"{decoder.parameter_count():,}",
                f"{speed.steps:,}",
                f"{speed.tokens:,}",
                number(speed.final_loss),
                number(speed.seconds, ",.0f"),
                number(rate, ",.0f"),
                si(None if rate is None else rate * flops),
                number(speed.mfu, ".1%"),
                number(speed.goodput, ".1%"),
            ]
        )
    header = ["model", "parameters", "steps", "tokens", "training loss at the end"]
    header += ["seconds in steps", "tokens / s", "model FLOP / s", "MFU", "goodput"]
    return table(
        [name.replace(" / ", "\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}") for name in header], rows
    )


def meanings(quadrants: Sequence[str], names: tuple[str, str]) -> dict[str, str]:
    """What the paper's four quadrants are; nothing for other grids."""
    if list(quadrants) != ["Q1", "Q2", "Q3", "Q4"]:
        return {}
    first, second = ([f"{level} {name}" for level in ("low", "high")] for name in names)
    levels = [f": {ppl}, {pd}" for ppl in first for pd in second]
    return dict(zip(quadrants, levels, strict=True))
