"""Tables, and progress on long work: one rich bar on a terminal, else a plain line now and then."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from frame_jax.errors import printable

Update = Callable[..., None]
PIPED_WIDTH = 160  # of tables where there is no terminal
WORDS = ("order", "minus", "verdict", "scores")  # columns of a table that hold no numbers


def wide_console(**options: Any) -> Any:
    """A `rich.console.Console` for tables, which takes its `options`; wide without a terminal."""
    from rich.console import Console

    terminal = (sys.stderr if options.get("stderr") else sys.stdout).isatty()
    return Console(width=None if terminal else PIPED_WIDTH, **options)


def text_table(title: str, lines: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> Any:
    """Makes a `rich` table of texts, a header first, for the terminal, over notes; numbers are to
    the right, words to the left."""
    from rich.table import Table
    from rich.text import Text

    caption = Text(printable("\n".join(notes)))
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for number, name in enumerate(lines[0]):
        left = number == 0 or name in WORDS
        justify: Any = "left" if left else "right"
        table.add_column(name, style="" if number else "bold", justify=justify, overflow="fold")
    for line in lines[1:]:
        table.add_row(*(Text(printable(text)) for text in line))  # a name is no markup
    return table


@contextlib.contextmanager
def progress_bar(
    description: str, total: float | None, unit: str, *, done: float = 0, show: bool = True
) -> Iterator[Update]:
    """Yields `update(amount, note="")`, which advances the bar by `amount` of `unit`.

    `total` is None where it is not known; what is `done` at the start (of a resumed phase) does not
    count in the rate; `show` is False on every process but the first.
    """
    if not show:
        yield lambda amount, note="": None
        return
    shown = _rich_bar if sys.stderr.isatty() else _plain_lines
    with shown(description, total, unit, done) as update:
        yield update


@contextlib.contextmanager
def _rich_bar(description: str, total: float | None, unit: str, done: float) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[rate]} {task.fields[note]}", markup=False),  # names are no markup
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total, completed=int(done), rate="", note="")
        started, advanced = time.monotonic(), 0.0

        def update(amount: float, note: str = "") -> None:
            nonlocal advanced
            advanced += amount
            rate = f"{advanced / max(time.monotonic() - started, 1e-9):,.0f} {unit}/s"
            progress.update(task, advance=amount, rate=rate, note=note)

        yield update


@contextlib.contextmanager
def _plain_lines(
    description: str, total: float | None, unit: str, done: float, every_seconds: float = 20.0
) -> Iterator[Update]:
    started, advanced, last, last_note = time.monotonic(), 0.0, time.monotonic(), ""

    def line(now: float) -> None:
        rate = advanced / max(now - started, 1e-9)
        position = done + advanced
        share = f" {100 * position / total:.0f}%" if total else ""
        left = f", {(total - position) / rate:.0f} s left" if total and rate else ""
        print(
            f"{description}:{share} {position:,.0f} {unit}, {rate:,.0f} {unit}/s{left} {last_note}",
            file=sys.stderr,
            flush=True,
        )

    def update(amount: float, note: str = "") -> None:
        nonlocal advanced, last, last_note
        advanced += amount
        last_note = note
        now = time.monotonic()
        if now - last >= every_seconds:
            last = now
            line(now)

    yield update
    line(time.monotonic())
