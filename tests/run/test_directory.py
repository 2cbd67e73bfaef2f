from pathlib import Path

import numpy as np
import pytest

from frame_jax.records import TokenReader, write_tokens
from frame_jax.run.directory import (
    atomic_path,
    list_parts,
    part_name,
    read_json,
    remove_temporaries,
    write_json,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "value.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_parts_are_listed_in_order(tmp_path: Path) -> None:
    for index in (10, 2, 0):
        (tmp_path / part_name(index, 12, ".parquet")).touch()
    (tmp_path / ".tmp-1-part-00003-of-00012.parquet").touch()
    assert [p.name[5:10] for p in list_parts(tmp_path, ".parquet")] == ["00000", "00002", "00010"]


def test_tokens_come_back_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "tokens.arrayrecord"
    arrays = [np.arange(n) * 1000 for n in (5, 0, 300, 1)]
    with write_tokens(path) as writer:
        for array in arrays:
            writer.append(array)
    reader = TokenReader(path)
    assert len(reader) == 4
    for index, got in zip([2, 0, 1, 2], reader.read([2, 0, 1, 2]), strict=True):
        np.testing.assert_array_equal(got, arrays[index])


def test_what_lies_under_temporary_names_goes_but_for_one_folder(tmp_path: Path) -> None:
    for name in ("a/.tmp-1-x", "manifest/frame/.tmp-2-y", ".tmp-discarded-b/c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    remove_temporaries(tmp_path, apart=tmp_path / "manifest")
    left = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [Path("manifest/frame/.tmp-2-y")]
    remove_temporaries(tmp_path)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
