"""Whatever a document holds, it comes out of the page as the text it was."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frame_jax.report.html import Html, script_json, table, tag

# Carriage returns and NUL are changed by HTML itself; surrogates are no text.
TEXT = st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"]), max_size=40)


class Reader(HTMLParser):
    """Collects elements, attributes and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def parse(markup: str) -> Reader:
    reader = Reader()
    reader.feed(markup)
    reader.close()
    return reader


@given(TEXT, TEXT)
def test_text_and_attributes_survive_and_make_no_elements(text: str, value: str) -> None:
    found = parse(tag("p", text, tag("b", text), title=value))
    assert found.elements == [("p", {"title": value}), ("b", {})]
    assert found.text == text + text


def test_cells_of_a_table_are_escaped_unless_they_are_markup() -> None:
    found = table(["<a>"], [["<b>", Html("<i>x</i>")]])
    assert "&lt;a&gt;" in found and "&lt;b&gt;" in found and "<i>x</i>" in found


@given(st.dictionaries(TEXT, st.lists(TEXT | st.floats(allow_nan=False, allow_infinity=False))))
def test_json_in_a_script_is_the_value_and_holds_no_markup(value: Any) -> None:
    text = script_json(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


def test_json_refuses_what_browsers_cannot_read() -> None:
    with pytest.raises(ValueError):
        script_json([float("nan")])
