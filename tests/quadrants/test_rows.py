"""Training rows: every token once, whatever the packing, the parts, the processes or a restart."""

import hashlib
import resource
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frame_jax.config.quadrants import MixtureConfig, RowsConfig
from frame_jax.errors import UserError
from frame_jax.parallel import processes
from frame_jax.parallel.host import allow_open_files
from frame_jax.quadrants import partition
from frame_jax.quadrants import rows as row_files
from frame_jax.quadrants.partition import write_reference_rows
from frame_jax.quadrants.rows import PackedSegments, best_fit, concat
from frame_jax.records import LENGTHS, OpenFiles, TokenReader
from frame_jax.run import buckets
from frame_jax.run.directory import RunDirectory, list_parts, read_json
from tests.quadrants.corpus import (
    BOS,
    EOS,
    Corpus,
    expected_cells,
    make_corpus,
    run_config,
    texts,
    write,
)

LENGTH = 63
ROW = LENGTH + 1


MIXTURES = {"each once": None, "mixture": MixtureConfig("domain", {"prose": 2.5, "code": 0.4})}


def make(
    root: Path, corpus: Corpus, *, packing: str = "concat", eos: int = EOS, mixture=None
) -> RunDirectory:
    directory = write(corpus, root, with_texts=True, eos=eos)
    rows = RowsConfig(sequence_length=LENGTH, packing=packing, parts=3)
    partition.partition_corpus(run_config(directory, rows=rows, mixture=mixture), directory)
    return directory


def rows_of(folder: Path) -> list[np.ndarray]:
    """The rows of each part: uint32 [rows, ROW]."""
    parts = []
    for path in list_parts(folder, ".arrayrecord"):
        reader = TokenReader(path)
        parts.append(np.array(reader.read(range(len(reader))), np.uint32).reshape(-1, ROW))
    return parts


def pieces_of(ids: np.ndarray) -> list[tuple[int, ...]]:
    """What lies between BOS, without what is before the first and without padding."""
    starts = np.flatnonzero(ids == BOS)
    pieces = [tuple(piece[1:].tolist()) for piece in np.split(ids, starts)[1:]]
    return [piece for piece in pieces if piece]


def documents_in(corpus: Corpus, quadrant: str, eos: int = EOS) -> list[tuple[int, ...]]:
    """Training documents of a quadrant as they should enter rows, without BOS."""
    config = run_config(RunDirectory("unused")).partition
    chosen = (expected_cells(corpus, config) == quadrant) & (corpus.split == "train")
    end = () if eos == BOS else (eos,)
    contents = texts(corpus)
    return [(*contents[i].tolist(), *end) for i in np.flatnonzero(chosen)]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    corpus = make_corpus(900)
    corpus.tokens[:3] = 700, 62, 63  # over many rows; fills a row framed, and one more
    return corpus


@pytest.mark.parametrize("eos", [EOS, BOS], ids=["eos", "bos is eos"])
def test_concat_holds_every_document_whole_and_in_one_piece(
    eos: int, corpus: Corpus, tmp_path: Path
) -> None:
    directory = make(tmp_path, corpus, eos=eos)
    counts = read_json(directory.quadrants / "rows.json")
    for quadrant in ("Q1", "Q2", "Q3", "Q4"):
        parts = rows_of(directory.quadrants / quadrant)
        found = [piece for rows in parts for piece in pieces_of(rows.ravel())]
        expected = documents_in(corpus, quadrant, eos)
        assert sorted(found) == sorted(expected) and found != expected
        ids = sum(len(document) + 1 for document in expected)
        assert counts[quadrant] == {
            "rows": sum(len(rows) for rows in parts),
            "documents": len(expected),
            "tokens": ids - len(expected) * (1 if eos == BOS else 2),
            "padding": sum(rows.size for rows in parts) - ids,
        }
        assert counts[quadrant]["padding"] < len(parts) * ROW
        recorded = read_json(directory.quadrants / LENGTHS)[quadrant]
        paths = list_parts(directory.quadrants / quadrant, ".arrayrecord")
        assert recorded == {p.stem: len(rows) for p, rows in zip(paths, parts, strict=True)}


def test_best_fit_cuts_only_long_documents(corpus: Corpus, tmp_path: Path) -> None:
    directory = make(tmp_path, corpus, packing="best_fit")
    counts = read_json(directory.quadrants / "rows.json")
    for quadrant in ("Q1", "Q2", "Q3", "Q4"):
        parts = rows_of(directory.quadrants / quadrant)
        found = [piece for rows in parts for row in rows for piece in pieces_of(row)]
        assert all(row[0] == BOS for rows in parts for row in rows)
        expected = [
            document[start : start + LENGTH]
            for document in documents_in(corpus, quadrant)
            for start in range(0, len(document), LENGTH)
        ]
        assert sorted(found) == sorted(expected)
        ids = sum(len(piece) + 1 for piece in expected)
        assert counts[quadrant]["padding"] == sum(rows.size for rows in parts) - ids
        assert counts[quadrant]["padding"] < 0.1 * ids


def test_order_of_documents_depends_on_the_seed_and_not_on_the_parts(
    corpus: Corpus, tmp_path: Path
) -> None:
    def order(name: str, parts: int, seed: int = 0) -> list[tuple[int, ...]]:
        directory = write(corpus, tmp_path / name, with_texts=True)
        rows = RowsConfig(sequence_length=LENGTH, parts=parts)
        config = run_config(directory, seed=seed, rows=rows)
        partition.partition_corpus(config, directory)
        return [p for rows in rows_of(directory.quadrants / "Q2") for p in pieces_of(rows.ravel())]

    one = order("one", 1)
    assert order("five", 5) == one
    other = order("other", 1, seed=1)
    assert sorted(other) == sorted(one) and other != one


def test_reference_rows_hold_the_reference_split(corpus: Corpus, tmp_path: Path) -> None:
    directory = write(corpus, tmp_path, with_texts=True)
    config = run_config(directory)
    counts = write_reference_rows(config, directory)
    reader = TokenReader(list_parts(directory.reference("rows") / "reference", ".arrayrecord")[0])
    chosen = corpus.split == "reference"
    assert counts["reference"]["documents"] == chosen.sum()
    assert counts["reference"]["tokens"] == corpus.tokens[chosen].sum()
    contents = {(*text.tolist(), EOS) for text, c in zip(texts(corpus), chosen, strict=True) if c}
    first = pieces_of(np.concatenate(reader.read(range(len(reader)))))
    assert set(first) < contents and first


def test_more_parts_than_open_files_are_not_called_damage(corpus: Corpus, tmp_path: Path) -> None:
    """Advice to make a sound part again would cost a pod its tokens or rows."""
    directory = write(corpus, tmp_path, with_texts=True)
    path = list_parts(directory.tokens, ".arrayrecord")[0]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    readers = []
    try:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 20, before[1])
        )
        with pytest.raises(UserError, match="ulimit -n") as error:
            for _ in range(40):
                readers.append(TokenReader(path))
                readers[-1].read([0])
        assert "damaged" not in str(error.value) and "redo" not in str(error.value)
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
        TokenReader(path).read([0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_a_lost_part_is_made_again_and_the_others_are_kept(
    mixture, corpus: Corpus, tmp_path: Path
) -> None:
    directory = make(tmp_path, corpus, mixture=mixture)
    files = sorted(directory.quadrants.rglob("*.*"))
    before = {path: path.read_bytes() for path in files}
    lost = list_parts(directory.quadrants / "Q3", ".arrayrecord")[1]
    lost.unlink()
    lost.with_suffix(".json").unlink()
    times = {path: path.stat().st_mtime_ns for path in files if path.exists()}
    rows = RowsConfig(sequence_length=LENGTH, parts=3)
    partition.partition_corpus(run_config(directory, rows=rows, mixture=mixture), directory)
    assert {path: path.read_bytes() for path in files} == before
    for name in ("rows.json", LENGTHS):
        del times[directory.quadrants / name]
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_rows_are_the_same_with_one_token_file_open_and_few_rows_made_together(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make(tmp_path / "plain", corpus)
    monkeypatch.setattr(row_files, "OpenFiles", lambda: OpenFiles(files=1))
    monkeypatch.setattr(row_files, "IDS_AT_ONCE", 5 * ROW)
    bounded = make(tmp_path / "bounded", corpus)
    for path in plain.quadrants.rglob("part-*"):
        other = bounded.quadrants / path.relative_to(plain.quadrants)
        assert other.read_bytes() == path.read_bytes()


# Of the rows that DuckDB's table of all documents gave, before they were listed in slices.
DIGESTS = {
    ("concat", "each once"): "973dfc841b573ebe",
    ("concat", "mixture"): "49f32a5ad4a9f67a",
    ("best_fit", "each once"): "d44f2d1574c87bcd",
    ("best_fit", "mixture"): "516eff8ff92db942",
}


@pytest.mark.parametrize("slice_lines", [buckets.SLICE_LINES, 650, 110])
@pytest.mark.parametrize(("packing", "name"), DIGESTS)
def test_rows_do_not_depend_on_the_slices_in_which_documents_are_listed(
    packing: str,
    name: str,
    slice_lines: int,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The table of all documents is larger than a slice, the tables of tokens are larger or not."""
    monkeypatch.setattr(buckets, "SLICE_LINES", slice_lines)
    directory = make(tmp_path, corpus, packing=packing, mixture=MIXTURES[name])
    write_reference_rows(run_config(directory, rows=RowsConfig(parts=2)), directory)
    digest = hashlib.sha256()
    folders = [*sorted(directory.quadrants.glob("Q*")), directory.reference("rows") / "reference"]
    for folder in folders:
        for path in list_parts(folder, ".arrayrecord"):
            for row in TokenReader(path).read(range(len(TokenReader(path)))):
                digest.update(row.tobytes())
    assert digest.hexdigest()[:16] == DIGESTS[packing, name]
    assert not list(directory.root.rglob(".tmp-*"))


@pytest.mark.parametrize(("count", "name"), [(2, "each once"), (4, "mixture")])
def test_several_processes_make_what_one_makes(
    count: int, name: str, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = make(tmp_path / "alone", corpus, mixture=MIXTURES[name])
    together = write(corpus, tmp_path / "together", with_texts=True)
    here, meet, failures = threading.local(), threading.Barrier(count, timeout=60), []
    monkeypatch.setattr(processes, "process_index", lambda: here.index)
    monkeypatch.setattr(processes, "process_count", lambda: count)
    monkeypatch.setattr(processes, "barrier", lambda name: meet.wait())
    monkeypatch.setattr(processes, "failing_processes", lambda *_: (meet.wait() and {}) or {})
    monkeypatch.setattr(processes, "broadcast_from_first", lambda value: value)

    def failing_processes(condition: bool, word: str) -> dict[int, str]:  # the same on all
        meet.wait()
        return {} if condition else {0: word}

    monkeypatch.setattr(processes, "failing_processes", failing_processes)

    def work(index: int) -> None:
        here.index = index
        rows = RowsConfig(sequence_length=LENGTH, parts=3)
        try:
            config = run_config(together, rows=rows, mixture=MIXTURES[name])
            partition.partition_corpus(config, together)
        except BaseException as error:
            failures.append(error)
            meet.abort()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for quadrant in ("Q1", "Q2", "Q3", "Q4"):
        ours, theirs = (rows_of(directory.quadrants / quadrant) for directory in (together, alone))
        assert len(ours) == 3
        assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))


lengths = st.lists(st.integers(2, 200), max_size=60).map(lambda values: np.array(values, np.int64))


@settings(max_examples=200, deadline=None)
@given(lengths, st.integers(3, 70))
def test_concat_places_every_id_once_and_leaves_room_only_at_the_end(
    lengths: np.ndarray, row_ids: int
) -> None:
    pieces = concat(lengths, row_ids)
    assert covered(pieces, lengths) == [list(range(n)) for n in lengths]
    filled = np.bincount(pieces.row, pieces.stop - pieces.start, minlength=pieces.rows)
    assert (filled[:-1] == row_ids).all() and (filled[-1:] <= row_ids).all()
    assert (np.diff(pieces.document) >= 0).all() and (np.diff(pieces.row) >= 0).all()


@settings(max_examples=200, deadline=None)
@given(lengths, st.integers(3, 70))
def test_best_fit_places_every_id_once_in_well_filled_rows(
    lengths: np.ndarray, row_ids: int
) -> None:
    pieces = best_fit(lengths, row_ids)
    assert covered(pieces, lengths) == [list(range(1, n)) for n in lengths]
    sizes = pieces.stop - pieces.start + 1
    filled = np.bincount(pieces.row, sizes, minlength=pieces.rows)
    assert (filled <= row_ids).all()
    assert (filled * 2 <= row_ids).sum() <= 1  # two half-empty rows would have been one
    whole = lengths <= row_ids
    assert (np.bincount(pieces.document, minlength=len(lengths))[whole] == 1).all()


def covered(pieces: PackedSegments, lengths: np.ndarray) -> list[list[int]]:
    """The places of each framed document that pieces cover, sorted."""
    places: list[list[int]] = [[] for _ in lengths]
    for document, start, stop in zip(pieces.document, pieces.start, pieces.stop, strict=True):
        places[document] += range(start, stop)
    return [sorted(p) for p in places]
