"""Digests of rows and orders, against hashlib on one row at a time."""

import hashlib

import numpy as np

from frame_jax.curriculum import digest

ROWS = np.random.default_rng(0).integers(0, 70_000, (9, 5))


def placed(place: int, row: np.ndarray) -> bytes:
    own = hashlib.sha256(row.astype("<u4").tobytes()).digest()[:16]
    return hashlib.sha256(place.to_bytes(8, "little") + own).digest()[:16]


def whole(places: list[int], rows: np.ndarray) -> int:
    each = digest.ordered_row_digests(np.array(places), digest.row_digests(rows))
    return digest.digest_value(each.sum(0, dtype=np.uint64))


def test_a_digest_is_what_the_page_says() -> None:
    places = [3, 1 << 40, *range(7)]
    each = digest.ordered_row_digests(np.array(places), digest.row_digests(ROWS))
    wanted = [placed(place, row) for place, row in zip(places, ROWS, strict=True)]
    assert [line.tobytes() for line in each] == wanted
    total = sum(int.from_bytes(one, "little") for one in wanted) % 2**128
    assert whole(places, ROWS) == total == digest.parse_digest(digest.format_digest(total))
    assert len(digest.format_digest(total)) == 32


def test_a_sum_has_no_order_of_its_own_but_knows_the_places() -> None:
    places = list(range(len(ROWS)))
    before = whole(places, ROWS)
    shuffled = np.random.default_rng(1).permutation(len(ROWS))
    assert whole(shuffled.tolist(), ROWS[shuffled]) == before
    assert whole(places, ROWS[shuffled]) != before
    changed = ROWS.copy()
    changed[4, 2] += 1
    others = {whole(places, changed), whole(places[1:], ROWS[1:]), whole([*places[1:], 9], ROWS)}
    assert len(others) == 3 and before not in others


def test_what_was_consumed_is_written_and_read() -> None:
    first = digest.digest_value(np.full(16, 255))  # wraps around
    assert first == sum(255 << 8 * i for i in range(16)) % 2**128
    assert digest.read_consumed_rows(digest.consumed_record(first)) == first
