"""Files of questions as people have them: packed under any name, marked, damaged, unreadable."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import re
from pathlib import Path

import pytest

from frame_jax.errors import UserError
from frame_jax.evaluation.items import read_items
from tests.corpus.sources.test_compressed import NAMES, others, zstd

QUESTIONS = [f"question {k} 中文 " + "words " * k for k in range(300)]
DATA = "".join(
    json.dumps({"question": question, "choices": ["a", "b"], "answer": k % 2}) + "\n"
    for k, question in enumerate(QUESTIONS)
).encode()
PACKED = {
    "plain": DATA,
    "mark": b"\xef\xbb\xbf" + DATA,
    "gzip": gzip.compress(DATA),
    "zstd": zstd(DATA),
    "long window": zstd(DATA, 30),
    "bz2": bz2.compress(DATA),
    "xz": lzma.compress(DATA),
}


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("name", NAMES)
def test_any_packing_under_any_name(tmp_path: Path, packing: str, name: str) -> None:
    (tmp_path / name).write_bytes(PACKED[packing])
    items = read_items(tmp_path / name)
    assert [item.question for item in items] == QUESTIONS
    assert [item.answer for item in items] == [k % 2 for k in range(300)]


@pytest.mark.parametrize("packing", ["gzip", "zstd", "bz2", "xz"])
def test_what_is_damaged_is_named(tmp_path: Path, packing: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(PACKED[packing][:-9])
    with pytest.raises(UserError, match=r"items\.jsonl: cannot be read \((damaged|cut short)"):
        read_items(path)


@pytest.mark.parametrize("name", others())
def test_what_is_no_text_at_all_is_called_by_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(others()[name][0])
    with pytest.raises(UserError) as error:
        read_items(path)
    assert re.match(rf"{path}: is .*, not JSON lines: ", str(error.value))
    assert "kind:" not in str(error.value) and "`path`" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"question": "caf\xe9"}', "line 2: not UTF-8: byte 0xe9 at offset 17"),
        (b"[" * 100_000, "line 2: not JSON"),
        (b'{"question": "\\ud83d", "choices": ["a", "b"], "answer": 0}', "a lone surrogate"),
    ],
)
def test_a_line_that_is_no_item_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(DATA.splitlines(keepends=True)[0] + line)
    with pytest.raises(UserError, match=message) as error:
        read_items(path)
    assert str(path) in str(error.value)


def test_a_read_error_of_the_disk_says_nothing_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.symlink_to("/proc/self/mem")  # whose first byte the system refuses with EIO
    with pytest.raises(UserError, match=r"cannot be read now .* says nothing of the file") as error:
        read_items(path)
    assert os.strerror(5) in str(error.value) and "replace" not in str(error.value)
