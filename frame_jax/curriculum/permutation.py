"""Keyed permutations computed element by element, without a table.

A Feistel network on a rectangle: an index is a line and a column, and each round shifts one of them
by a hash of the other. The rectangle is hardly larger than the size, and an index that leaves it
walks on until it is back inside. Nothing is stored, so shuffling 10^9 rows costs no memory, and the
numbers depend on this file alone: not on the version of a library, not on the machine.
"""

from collections.abc import Callable

import numpy as np

ROUNDS = 10
_STRIDE = np.uint64(0x9E3779B97F4A7C15)
_ALL_STRIDES = np.uint64(ROUNDS * int(_STRIDE) % (1 << 64))


def permutation_keys(*parts: int | np.ndarray) -> np.ndarray:
    """Makes one uint64 key for each element of the broadcast integers, of which one is an array."""
    key = np.zeros(np.broadcast_shapes(*(np.shape(part) for part in parts)), np.uint64)
    for part in parts:
        key = mix_bits(key + _STRIDE + np.asarray(part, np.int64).astype(np.uint64))
    return key


def permute(indices: np.ndarray, sizes: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Where each index goes, int64 [n], under the permutation of [0, size) given by its key.

    Indices and sizes, which are below 2**52, are int64 [n], keys uint64 [n].
    """
    return _walk(_feistel, indices, sizes, key)


def unpermute(indices: np.ndarray, sizes: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The inverse of `permute`: `unpermute(permute(i, n, k), n, k)` is i."""
    return _walk(_unfeistel, indices, sizes, key)


def _walk(
    shift: Callable[..., np.ndarray], indices: np.ndarray, sizes: np.ndarray, key: np.ndarray
) -> np.ndarray:
    sizes = sizes.astype(np.uint64)
    columns = np.ceil(np.sqrt(sizes)).astype(np.uint64)
    lines = (sizes + columns - np.uint64(1)) // columns
    result = indices.astype(np.uint64)
    outside = np.arange(len(result))
    while len(outside):
        walked = shift(result[outside], lines[outside], columns[outside], key[outside])
        result[outside] = walked
        outside = outside[walked >= sizes[outside]]
    return result.astype(np.int64)


def _feistel(
    values: np.ndarray, lines: np.ndarray, columns: np.ndarray, key: np.ndarray
) -> np.ndarray:
    line, column = np.divmod(values, columns)
    for _ in range(ROUNDS // 2):
        line = (line + (mix_bits(key + column) >> np.uint64(1))) % lines
        key = key + _STRIDE
        column = (column + (mix_bits(key + line) >> np.uint64(1))) % columns
        key = key + _STRIDE
    return line * columns + column


def _unfeistel(
    values: np.ndarray, lines: np.ndarray, columns: np.ndarray, key: np.ndarray
) -> np.ndarray:
    """The rounds of `_feistel` backwards."""
    line, column = np.divmod(values, columns)
    key = key + _ALL_STRIDES
    for _ in range(ROUNDS // 2):
        key = key - _STRIDE
        column = (column + columns - (mix_bits(key + line) >> np.uint64(1)) % columns) % columns
        key = key - _STRIDE
        line = (line + lines - (mix_bits(key + column) >> np.uint64(1)) % lines) % lines
    return line * columns + column


def mix_bits(value: np.ndarray) -> np.ndarray:
    """A bijection of uint64 whose every output bit depends on every input bit (SplitMix64)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
