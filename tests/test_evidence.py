"""The tables of docs/evidence.md against the rule that their verdicts are by, and its text."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from frame_jax.config.file import load
from frame_jax.models.transformer import Decoder
from frame_jax.report.compared_runs import ComparedRun, ComparedRuns
from frame_jax.report.study_results import BETTER, SHORT, WORSE
from frame_jax.report.verdict import (
    DOCUMENT_ERRORS,
    decide_verdict,
    detectable_difference,
    half_width,
)
from frame_jax.run.directory import read_dataclass
from tools.reference_pairs import Line, as_markdown

SEEDS = 3
EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence"
SECTION = "Sizes, tokens, scores"
PAGE = Path(__file__).parents[1] / "docs" / "evidence.md"
LINE = re.compile(
    r"^\| ([^|]+) \| (.*) \| ([+-][\d.]+) \| ([+-][\d.]+) to ([+-][\d.]+) \| ([\d.]+) \| "
    r"([a-z ]+) \|$",
    re.MULTILINE,
)


class Row(NamedTuple):
    """A line of a table of verdicts: bits per byte."""

    section: str
    order: str
    others: str
    mean: float
    half: float
    middle: float
    document_error: float
    verdict: str


def rows() -> list[Row]:
    found = []
    for part in re.split(r"^## ", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]:
        section = part.partition("\n")[0]
        for order, others, *numbers, word in LINE.findall(part):
            mean, low, high, error = map(float, numbers)
            half, middle = (high - low) / 2, (high + low) / 2
            found.append(Row(section, order, others, mean, half, middle, error, word))
    return found


def seen(row: Row) -> float:
    """What the study would have seen four times in five."""
    return detectable_difference(row.half / half_width(1.0, SEEDS), row.document_error, SEEDS)


def test_every_table_is_read() -> None:
    sections = [row.section for row in rows()]
    counts = {section: sections.count(section) for section in dict.fromkeys(sections)}
    assert counts == {
        **{"Verdicts": 15, "A second corpus": 7},
        **{"Continued on another mixture": 9, "Other decoders": 3},
    }


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row.section}: {row.order}")
def test_a_verdict_is_that_of_the_rule(row: Row) -> None:
    assert row.mean == pytest.approx(row.middle, abs=1.1e-4)  # both are rounded
    clear = abs(row.mean) > max(row.half, DOCUMENT_ERRORS * row.document_error)
    word = {True: WORSE, False: BETTER}[row.mean > 0] if clear else "no difference"
    assert row.verdict == word
    if not clear:
        assert abs(row.mean) < seen(row)


def test_differences_are_those_of_the_lines_compared() -> None:
    """Within each table, of rounded numbers."""
    text = PAGE.read_text("utf-8").partition("## Other decoders")[0]
    for part in re.split(r"^## ", text, flags=re.MULTILINE):
        losses = {
            name: float(loss)
            for name, loss in re.findall(r"^\| ([^|]+) \| (\d\.\d{4}) \|", part, re.MULTILINE)
        }
        for order, others, mean, *_ in LINE.findall(part):
            against = others.split(" | ")[1]
            assert losses[order] - losses[against] == pytest.approx(float(mean), abs=2e-4)


def test_the_text_says_what_the_studies_would_have_seen() -> None:
    page = " ".join(PAGE.read_text("utf-8").split())
    by_name = {(row.section, row.order): seen(row) for row in rows()}
    first = by_name["Verdicts", "frame"]
    assert f"It would have seen {first:.3f} four times in five" in page
    second = by_name["A second corpus", "frame"]
    assert f"Four times in five it would have seen {second:.3f} between FRAME" in page
    dense, experts, mamba = (seen(row) for row in rows() if row.section == "Other decoders")
    assert f"have seen {dense:.3f}, {experts:.3f} and {mamba:.3f} four times in five" in page
    every = [first, second, dense, experts, mamba]
    assert f"random order {min(every):.2f} to {max(every):.2f} bits per byte here" in page


def test_the_repetition_lies_within_the_interval_of_what_it_repeats() -> None:
    (first,) = [r for r in rows() if (r.section, r.order) == ("Verdicts", "frame")]
    (again,) = [r for r in rows() if r.order.startswith("dense")]
    low, high = first.middle - first.half, first.middle + first.half
    assert low < again.mean < high
    page = " ".join(PAGE.read_text("utf-8").split())
    assert f"{again.mean:+.4f} bits per byte lies inside the first study's interval" in page
    assert f"interval of {low:+.4f} to {high:+.4f}" in page


def compared() -> tuple[ComparedRun, ...]:
    """The runs of the section on sizes, tokens and scores, as `frame_jax.compare` wrote them."""
    return read_dataclass(EVIDENCE / "sizes.json", ComparedRuns).runs


def section(title: str) -> str:
    """A section of the page, without its title."""
    return PAGE.read_text("utf-8").split(f"## {title}\n")[1].split("\n## ")[0]


def model_cells(run: ComparedRun) -> str:
    scores = "" if run.references else f", by {run.scores}"
    return f"{run.parameters / 1e6:.2f}M, {run.tokens_per_parameter:.0f}{scores}"


def effect_lines(run: ComparedRun) -> list[str]:
    """The lines of a run in the table of effects."""
    (base,) = run.study.lines
    found = [f"| {model_cells(run)} | {base.line.arm} | {base.bits_per_byte:.4f} |  |  |  |  |"]
    for order, verdict in run.effects():
        interval = f"{verdict.low:+.4f} to {verdict.high:+.4f}"
        errors = f"{verdict.document_error:.4f} | {verdict.detectable:.4f}"
        word = SHORT.get(verdict.verdict, verdict.verdict)
        numbers = f"{verdict.mean:+.4f} | {interval} | {errors} | {word}"
        found.append(f"| {model_cells(run)} | {order} | {numbers} |")
    return found


def stage_lines(run: ComparedRun) -> list[str]:
    """The lines of a run in the table of the stages of FRAME's order."""

    def fall(sides: tuple[float | None, float | None]) -> str:
        before, after = sides
        assert before is not None and after is not None
        return f"{before:.3f} to {after:.3f} | {before - after:+.3f}"

    return [
        f"| {model_cells(run)} | {at.stage} | {fall(at.training)} | {fall(at.held_out)} |"
        for at in run.study.stages["frame"]
    ]


def pair_lines() -> list[Line]:
    """What `tools/reference_pairs.py --json` printed."""
    lines = (EVIDENCE / "reference_pairs.jsonl").read_text("utf-8").splitlines()
    return [Line(**json.loads(line)) for line in lines]


def test_the_verdicts_of_compared_runs_follow_from_their_seeds_and_documents() -> None:
    for run in compared():
        for _, verdict in run.effects():
            again = decide_verdict(verdict.by_seed, verdict.document_error)
            for name in ("mean", "low", "high", "detectable"):
                assert getattr(verdict, name) == pytest.approx(getattr(again, name), rel=1e-9)
            assert verdict.verdict == again.verdict


def test_the_tables_of_sizes_tokens_and_scores_are_those_of_the_runs() -> None:
    """All lines, and no others."""
    text = section(SECTION).splitlines()
    wanted = [line for run in compared() for line in effect_lines(run)]
    assert [line for line in text if line.startswith("| 0.") and line.count("|") == 8] == wanted
    staged = [run for run in compared() if any(line in text for line in stage_lines_of(run))]
    assert len(staged) == 2
    wanted = [line for run in staged for line in stage_lines(run)]
    assert [line for line in text if line.startswith("| 0.") and line.count("|") == 7] == wanted


def stage_lines_of(run: ComparedRun) -> list[str]:
    return stage_lines(run) if "frame" in run.study.stages else []


def test_the_options_of_compared_runs_are_those_of_a_config() -> None:
    """Each line of options, its shorthand replaced, with the model and the scores of its run."""
    block = section(SECTION).split("```text\n")[1].split("```")[0]
    shorthand = dict(re.findall(r"^([A-Z]+)='(.*)'$", block, re.MULTILINE))
    runs = {run.name: run for run in compared()}
    lines = re.findall(r"^([a-z_0-9]+) +(--.*)$", block, re.MULTILINE)
    assert {"small_20", *(name for name, _ in lines)} == set(runs)
    for name, options in [("small_20", ""), *lines]:
        for word, value in shorthand.items():
            options = options.replace(f'"${word}"', shlex.quote(value))
        config = load(PAGE.parents[1] / "configs" / "study_sizes.yaml", *shlex.split(options))
        run, training = runs[name], config.pretrain.training
        length = config.partition.rows.sequence_length
        assert Decoder(config.pretrain.model, 2048).parameter_count() == run.parameters
        assert training.steps is not None
        assert training.steps * training.batch_size * length == run.tokens
        assert {config.baseline, *(order for order, _ in run.effects())} == set(config.curricula)
        table = config.scoring.table
        assert run.scores == ("PPL, PD" if table is None else table.ppl)


def test_the_table_of_reference_models_is_what_the_tool_says() -> None:
    page = (PAGE.parent / "scoring.md").read_text("utf-8")
    shown = [line for line in pair_lines() if as_markdown([line]).splitlines()[2] in page]
    assert len(shown) > 5
    assert as_markdown(shown) in page


def test_differences_in_the_text_are_those_of_the_tables() -> None:
    """Every signed number to three digits is one of the runs', or of what was expected."""
    text, _, expected = section(SECTION).partition("### Expected")
    prose = [line for line in text.splitlines() if not line.startswith("|")]
    known = set()
    for run in compared():
        for _, verdict in run.effects():
            for value in (verdict.mean, verdict.low, verdict.high):
                known.add(f"{value:+.3f}")
    said = re.findall(r"[+-]0\.\d{3}(?!\d)", "\n".join(prose))
    assert len(said) > 5 and set(said) <= known
    assert "| 0.12M, 20 | frame, reverse, random_again | +0.02, +0.06," in expected
