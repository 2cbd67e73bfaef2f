"""The page as a reader meets it: offline, in a real browser, made of documents that attack it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from frame_jax.report import report
from frame_jax.report.figures import ARM_COLOURS
from frame_jax.report.page import THEMES
from tests.report.browser import chromium, colours, drawn, open_page, picture, prefer, until
from tests.report.synthetic import make_run

pytestmark = pytest.mark.browser


class Page(NamedTuple):
    session: Any
    path: Path


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium() as session:
        config, directory = make_run(tmp_path_factory.mktemp("<run> & co"))
        report.write_report(config, directory)
        yield Page(session, directory.report / "index.html")


def press(session: Any, label: str) -> None:
    session.execute_script(
        "[...document.querySelectorAll('button')].find((b) => b.textContent === arguments[0])"
        ".click()",
        label,
    )


def test_every_figure_is_drawn_without_a_message_or_a_request(page: Page) -> None:
    for width in (1200, 390):
        for dark in (False, True):
            assert open_page(page.session, page.path, width=width, dark=dark) == []
            panels = page.session.execute_script(
                "return [...document.querySelectorAll('[data-figure]')].map((e) => e.id)"
            )
            assert len(panels) == 11
            for panel in panels:
                found = colours(page.session, panel)
                assert THEMES["dark" if dark else "light"]["axis"]["labelColor"] in found
                assert len(found) > 3, panel
    requests = page.session.execute_script("return performance.getEntriesByType('resource').length")
    assert requests == 0


def test_the_policy_forbids_foreign_scripts_and_eval(page: Page) -> None:
    open_page(page.session, page.path)
    page.session.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.foreign = 1';"
        "document.body.append(s);"
    )
    assert page.session.execute_script("return window.foreign") is None
    refused = page.session.execute_script(
        "const b = document.createElement('button'); b.setAttribute('onclick', 'window.foreign=2');"
        "document.body.append(b); b.click(); return window.foreign === undefined"
    )
    assert refused
    assert len(page.session.get_log("browser")) == 2


def test_pressing_an_arm_hides_it_in_every_figure_of_arms_and_again_shows_it(page: Page) -> None:
    session = page.session
    frame, other = ARM_COLOURS[:2]
    panels = ("training-loss-0", "held-out-loss-0")

    def shows(colour: str) -> list[bool]:
        return [colour in colours(session, panel) for panel in panels]

    open_page(session, page.path)
    assert all(shows(frame)) and all(shows(other))
    press(session, "frame")
    until(lambda: not any(shows(frame)))
    assert all(shows(other))
    prefer(session, dark=True)  # a figure that is drawn again remembers
    until(lambda: drawn(session) == "dark")
    until(lambda: not any(shows(frame)))
    press(session, "frame")
    until(lambda: all(shows(frame)))


def on_plot(session: Any, event: str) -> None:
    """Gives the middle of the first figure an event, which is JavaScript that knows where: `at`."""
    session.execute_script(
        "const plot = document.querySelector('#training-loss-0 svg.marks');"
        "plot.scrollIntoView({block: 'center'});"
        "const { left, top, width, height } = plot.getBoundingClientRect();"
        "const at = {clientX: left + width / 2, clientY: top + height / 2, bubbles: true};"
        f"document.elementFromPoint(at.clientX, at.clientY).dispatchEvent({event});"
    )


def test_zooming_changes_the_loss_and_reset_undoes_it(page: Page) -> None:
    session = page.session
    open_page(session, page.path)
    whole = picture(session, "training-loss-0")
    on_plot(session, "new WheelEvent('wheel', {deltaY: -300, shiftKey: true, ...at})")
    until(lambda: picture(session, "training-loss-0") != whole)
    assert picture(session, "training-loss-0") != whole
    on_plot(session, "new MouseEvent('dblclick', at)")
    until(lambda: picture(session, "training-loss-0") == whole)
    assert picture(session, "training-loss-0") == whole


def test_choosing_a_part_of_the_held_out_split_draws_it(page: Page) -> None:
    session = page.session
    open_page(session, page.path)
    overall = picture(session, "held-out-loss-0")
    select = "const s = document.querySelector('select');"
    labels = session.execute_script(select + "return [...s.options].map((o) => o.value)")
    assert {"all", "domain: code", "language: zh", "quadrant: Q4"} <= set(labels)
    session.execute_script(
        select + "s.value = 'quadrant: Q4'; s.dispatchEvent(new Event('change'))"
    )
    until(lambda: picture(session, "held-out-loss-0") != overall)


def test_a_phone_scrolls_down_only(page: Page) -> None:
    open_page(page.session, page.path, width=390)
    widths = page.session.execute_script(
        "const drawn = [...document.querySelectorAll('canvas, svg.marks')];"
        "return [document.documentElement.scrollWidth,"
        "        ...drawn.map((e) => e.getBoundingClientRect().right)]"
    )
    assert max(widths) <= 390
