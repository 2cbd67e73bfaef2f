"""Token files: records in any order, few files open at one time, lengths without opening."""

import errno
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from frame_jax import records
from frame_jax.errors import UserError
from frame_jax.records import DENSE, LENGTHS, OpenFiles, TokenReader, record_counts, write_tokens

FILES, ROWS = 40, 30


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Records that say where they are from: [file, record]."""
    root = tmp_path_factory.mktemp("records") / "Q1"
    found = [root / f"part-{file:05d}-of-{FILES:05d}.arrayrecord" for file in range(FILES)]
    for file, path in enumerate(found):
        with write_tokens(path) as writer:
            for record in range(ROWS):
                writer.append([file, record])
    return found


def open_here() -> int:
    """Files of tokens that this process holds open."""
    links = Path("/proc/self/fd").iterdir()
    return sum(link.is_symlink() and link.readlink().suffix == ".arrayrecord" for link in links)


@pytest.mark.slow
@pytest.mark.parametrize("bound", [{"records": 3 * ROWS}, {"files": 3}, {"records": 1}])
def test_few_files_are_open_and_all_are_read(paths: list[Path], bound: dict[str, int]) -> None:
    files, before = OpenFiles(**bound), open_here()
    most = 1 if bound == {"records": 1} else 3
    random = np.random.default_rng(0)
    for file, record in random.integers([FILES, ROWS], size=(300, 2)):
        (found,) = files.reader(paths[file]).read([record])
        np.testing.assert_array_equal(found, [file, record])
        assert open_here() - before <= most
    del files
    assert open_here() == before


def test_files_used_last_stay_open(paths: list[Path]) -> None:
    files = OpenFiles(files=2)
    one, two = files.reader(paths[0]), files.reader(paths[1])
    assert files.reader(paths[0]) is one
    files.reader(paths[2])
    assert files.reader(paths[0]) is one and files.reader(paths[1]) is not two
    assert len(two.read([0])) == 1  # whoever still has it may go on reading


def test_threads_share_open_files(paths: list[Path]) -> None:
    files, failures = OpenFiles(files=2), []

    def work(seed: int) -> None:
        try:
            for file in np.random.default_rng(seed).integers(FILES, size=200):
                (found,) = files.reader(paths[file]).read([seed])
                assert found.tolist() == [file, seed]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("count", [1, 2, 7, 400])
def test_records_come_in_the_order_asked_for_from_long_and_short_files(
    count: int, tmp_path: Path
) -> None:
    """A few of many records are read another way than many of few."""
    path = tmp_path / "long.arrayrecord"
    total = 5 * DENSE
    with write_tokens(path) as writer:
        for record in range(total):
            writer.append([record, record + 1])
    reader = TokenReader(path)
    for wanted in (
        np.random.default_rng(count).integers(total, size=count),
        np.arange(total - count, total),
        np.repeat([5, 6, 6, 5], count),
    ):
        found = np.array(reader.read(wanted))
        np.testing.assert_array_equal(found, np.stack([wanted, wanted + 1], axis=1))
    for beyond in ([total], [total - 1, total]):
        with pytest.raises(UserError, match="is damaged"):
            reader.read(beyond)


def test_recorded_lengths_spare_opening(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert record_counts(paths).tolist() == [ROWS] * FILES
    assert record_counts([]).tolist() == []
    known = paths[0].parents[1] / LENGTHS
    known.write_text(json.dumps({"Q1": {path.stem: ROWS for path in paths[1:]}}))
    opened = []

    class Counted(TokenReader):
        def __init__(self, path: Path):
            opened.append(path)
            super().__init__(path)

    monkeypatch.setattr(records, "TokenReader", Counted)
    try:
        assert record_counts(paths).tolist() == [ROWS] * FILES
    finally:
        known.unlink()
    assert opened == paths[:1]  # of which nothing was recorded


@pytest.mark.parametrize("damage", ["cut short", "emptied", "gone"])
def test_a_file_that_cannot_be_opened_is_named_with_the_way_on(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "run" / "quadrants" / "Q1" / "part-00000-of-00001.arrayrecord"
    with write_tokens(path) as writer:
        for record in range(ROWS):
            writer.append([record] * 500)
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:1000] if damage == "cut short" else b"")
    with pytest.raises(UserError) as error:
        len(TokenReader(path))
    assert str(error.value).startswith(f"{path} is damaged (")
    assert f"rm {path.with_suffix('.*')} {tmp_path / 'run' / 'partition.json'}" in str(error.value)


def test_a_file_that_the_storage_does_not_give_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        def __init__(self, path: str, _: str):
            self._path = path

        def ok(self) -> bool:
            return False

        def close(self) -> None:
            raise RuntimeError(f"{os.strerror(errno.EIO)}; reading {self._path}")

    monkeypatch.setattr(records, "ArrayRecordReader", Refusing)
    with pytest.raises(UserError, match="the storage or the network failed") as error:
        TokenReader(tmp_path / "part-00000-of-00001.arrayrecord")
    assert "rm " not in str(error.value)
