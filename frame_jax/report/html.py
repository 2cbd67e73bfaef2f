"""Elements of a page from text that may contain anything: whatever is not `Html` is escaped."""

import html
import json
from collections.abc import Sequence
from typing import Any


class Html(str):
    """Markup that is already safe to put into a page."""

    __slots__ = ()


def tag(element: str, *children: str, **attributes: str | bool | None) -> Html:
    """One element. Attribute names may end in `_` and use `_` for `-`; None and False leave it out.

    >>> tag("p", "a < b", class_="note")
    '<p class="note">a &lt; b</p>'
    """
    written = ""
    for key, value in attributes.items():
        name = key.rstrip("_").replace("_", "-")
        if value is not None and value is not False:
            written += f" {name}" if value is True else f' {name}="{html.escape(value)}"'
    return Html(f"<{element}{written}>{join_html(children)}</{element}>")


def join_html(children: Sequence[str]) -> Html:
    """Children one after the other, escaped where they are not `Html`."""
    return Html("".join(c if isinstance(c, Html) else html.escape(c) for c in children))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table that scrolls sideways on a narrow screen; the first cell of each row names it."""
    head = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in header)))
    lines = (
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
        for row in rows
    )
    return tag("div", tag("table", head, tag("tbody", *lines)), class_="scroll", tabindex="0")


def note(text: str) -> Html:
    """A paragraph that explains what stands above it."""
    return tag("p", text, class_="note")


def folded_section(title: str, *children: str) -> Html:
    """Something long that opens on demand."""
    return tag("details", tag("summary", title), *children, class_="fold")


def script_json(value: Any) -> Html:
    """JSON that cannot leave a `<script>` element, whatever strings it holds.

    Raises:
        ValueError: for NaN and infinities, which JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Html(text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}))
