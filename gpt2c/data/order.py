"""The order of the training data: a permutation of each epoch that is computed, not stored."""

from __future__ import annotations

import numpy as np

ROUNDS = 6


def permutation(index: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Where a pseudo-random permutation of 0 .. size - 1 takes each index; constant memory, no state.

    A balanced Feistel network permutes the smallest 0 .. 4**k - 1 that holds `size`; a result outside is permuted again
    until it is inside (cycle walking), less than four times on average. Source: Black and Rogaway, "Ciphers with
    Arbitrary Finite Domains", CT-RSA 2002, sections 3 and 4; the network is Luby and Rackoff's, 1988.

    index: integers in 0 .. size - 1, any shape. Returns int64 of that shape.
    """
    if size < 1 or ((index < 0) | (index >= size)).any():
        raise ValueError(f"expected indices of at least 0 and below {size}")
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    # Raw words of Philox, not a distribution of NumPy's, which may change from version to version.
    keys = np.random.Philox(key=seed, counter=[0, 0, epoch, 0]).random_raw(ROUNDS)
    out = _feistel(index.astype(np.uint64), keys, half)
    while (outside := out >= np.uint64(size)).any():
        out[outside] = _feistel(out[outside], keys, half)
    return out.astype(np.int64)


def offset(length: int, seed: int, epoch: int) -> int:
    """A number in 0 .. length - 1 for the epoch: where its first window is cut."""
    return int(np.random.Philox(key=seed, counter=[0, 0, epoch, 1]).random_raw() % length)


def _feistel(values: np.ndarray, keys: np.ndarray, half: np.uint64) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half) | right


def _mix(words: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, section 4, variant 13): each bit depends on
    all."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
