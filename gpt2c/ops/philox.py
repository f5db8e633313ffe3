"""The reference of csrc/philox.h: Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3",
2011)."""

from __future__ import annotations

from torch import Tensor

_LOW = 0xFFFFFFFF


def philox_reference(seed: int, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four random 32-bit words for each counter.

    seed: 64 bits, the low half is the first key word. counter: four int64 tensors of values in [0, 2^32), which
    broadcast. Returns four int64 tensors of values in [0, 2^32).
    """
    key = [seed & _LOW, (seed >> 32) & _LOW]
    c0, c1, c2, c3 = counter
    for _ in range(10):
        high0, low0 = _multiply(c0, 0xD2511F53)
        high1, low1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ key[0], low1, high0 ^ c3 ^ key[1], low0
        key = [(key[0] + 0x9E3779B9) & _LOW, (key[1] + 0xBB67AE85) & _LOW]
    return tuple(w.expand((c0 ^ c1 ^ c2 ^ c3).shape) for w in (c0, c1, c2, c3))


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low words of the 64-bit products a * b, by halves of a, since int64 has no unsigned product."""
    low = (a & 0xFFFF) * b
    middle = (a >> 16) * b + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)
