"""The tables of docs/evidence.md against the rule that their verdicts are by, and its text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from frame_jax.report.study_results import BETTER, WORSE
from frame_jax.report.verdict import DOCUMENT_ERRORS, detectable_difference, half_width

SEEDS = 3
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
