"""The loader: files to batches, the same rows for any number of processes and from any step."""

import json
from itertools import pairwise
from pathlib import Path

import grain
import numpy as np
import pytest

from frame_jax.curriculum import loader
from frame_jax.curriculum.loader import BatchSource, make_loader
from frame_jax.curriculum.selection import SelectionMap
from frame_jax.errors import UserError
from frame_jax.records import LENGTHS, OpenFiles, TokenReader, write_tokens
from tests.curriculum.orders import preset_map

QUADRANT_ROWS = {"Q1": 37, "Q2": 41, "Q3": 29, "Q4": 40}
BATCH, LENGTH, BOS = 12, 5, 1


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Rows that say where they are from: [quadrant, row, ...], in parts of 0 to 20 rows."""
    root = tmp_path_factory.mktemp("rows")
    paths: dict[str, list[Path]] = {}
    for number, (quadrant, rows) in enumerate(QUADRANT_ROWS.items()):
        cuts = [0, 9, 9, 20, rows]
        for part, (first, stop) in enumerate(pairwise(cuts)):
            path = root / f"{quadrant}-{part}.arrayrecord"
            with write_tokens(path) as writer:
                for row in range(first, stop):
                    writer.append([100 + number, row, 7, 7, 7])
            paths.setdefault(quadrant, []).append(path)
    return paths


@pytest.fixture(scope="module")
def selection() -> SelectionMap:
    return preset_map("frame", QUADRANT_ROWS)


def load(parts, selection, offsets=range(BATCH), start_step=0) -> np.ndarray:
    """int32 [steps, rows, LENGTH]."""
    loader = make_loader(
        BatchSource(
            parts,
            selection,
            batch_size=BATCH,
            row_offsets=offsets,
            row_tokens=LENGTH,
            padding_id=BOS,
        ),
        start_step=start_step,
    )
    return np.stack(list(loader))


def test_batches_follow_the_selection_and_end_in_padding(parts, selection) -> None:
    batches = load(parts, selection)
    rows = batches.reshape(-1, LENGTH)
    total = sum(QUADRANT_ROWS.values())
    assert batches.dtype == np.int32 and len(batches) == -(-total // BATCH)
    quadrants, indices = selection.select(np.arange(total))
    np.testing.assert_array_equal(rows[:total, :2], np.stack([quadrants + 100, indices], axis=1))
    assert (rows[total:] == BOS).all() and len(rows) > total
    assert len(np.unique(rows[:total], axis=0)) == total


def test_the_same_as_grain_selecting_from_datasets(parts, selection) -> None:
    """The map is a grain selection map; the loader only reads it faster."""

    def rows_of(paths: list[Path]) -> grain.MapDataset:
        readers = [TokenReader(path) for path in paths]
        rows = [row for reader in readers for row in reader.read(range(len(reader)))]
        return grain.MapDataset.source(rows)

    datasets = [rows_of(paths) for paths in parts.values()]
    expected = list(grain.MapDataset.select_from_datasets(datasets, selection))
    rows = load(parts, selection).reshape(-1, LENGTH)
    np.testing.assert_array_equal(rows[: len(expected)], np.stack(expected))


@pytest.mark.parametrize("hosts", [2, 3, 4])
def test_any_number_of_processes_reads_the_same_batches(parts, selection, hosts: int) -> None:
    whole = load(parts, selection)
    contiguous = np.split(np.arange(BATCH), hosts)
    strided = [np.arange(host, BATCH, hosts) for host in range(hosts)]
    for layout in (contiguous, strided):
        joined = np.empty_like(whole)
        for offsets in layout:
            joined[:, offsets] = load(parts, selection, offsets)
        np.testing.assert_array_equal(joined, whole)


@pytest.mark.parametrize("step", [1, 7, 12])
def test_resuming_continues_on_another_number_of_processes(parts, selection, step: int) -> None:
    whole = load(parts, selection)
    for offsets in ([0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]):
        resumed = load(parts, selection, offsets, start_step=step)
        np.testing.assert_array_equal(resumed, whole[step:, offsets])


@pytest.mark.parametrize("step", [0, 7])
def test_the_same_rows_with_one_file_open_at_a_time(
    parts, selection, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load(parts, selection)
    monkeypatch.setattr(loader, "OpenFiles", lambda: OpenFiles(files=1))
    np.testing.assert_array_equal(load(parts, selection, start_step=step), whole[step:])


def test_a_part_that_is_not_what_was_recorded_is_refused(parts, selection, tmp_path: Path) -> None:
    """Its lengths are taken on trust until a row of it is wanted."""
    moved: dict[str, list[Path]] = {}
    for quadrant, paths in parts.items():
        moved[quadrant] = [tmp_path / quadrant / path.name for path in paths]
        for new, old in zip(moved[quadrant], paths, strict=True):
            new.parent.mkdir(exist_ok=True)
            new.write_bytes(old.read_bytes())
    said = {c: {p.stem: len(TokenReader(p)) for p in paths} for c, paths in moved.items()}
    (tmp_path / LENGTHS).write_text(json.dumps(said))
    np.testing.assert_array_equal(load(moved, selection), load(parts, selection))
    moved["Q2"][2].write_bytes(moved["Q2"][0].read_bytes())  # 9 rows in place of 11
    with pytest.raises(UserError, match=r"Q2-2.*holds 9 rows, and 11 were written"):
        load(moved, selection)
