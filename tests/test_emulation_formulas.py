"""What the emulator makes of shuffles, votes and matrix fragments, and what kernels make of Philox, against formulas
written here once more: those of the PTX ISA and of the generator's paper."""

from __future__ import annotations

from collections.abc import Iterator

import emulation
import pytest
import torch
from torch import Tensor

from gpt2c.ops.philox import philox_reference

pytestmark = pytest.mark.skipif(not emulation.cuda_headers(), reason="CUDA's headers are missing")

ALL = 0xFFFFFFFF


@pytest.fixture(scope="module")
def server() -> Iterator[emulation.Emulated]:
    server = emulation.emulated()
    yield server
    server.close()


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64).to(torch.int32)  # wraps unsigned words around


def unsigned(words: Tensor) -> Tensor:
    return words.to(torch.int64) & ALL


# The known-answer vectors published with the generator (Random123, philox4x32 with 10 rounds): key, counter, words.
PHILOX_ANSWERS = [
    (0, [0, 0, 0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    (2**64 - 1, [ALL] * 4, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        0x299F31D0_A4093822,
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("seed", "counter", "expected"), PHILOX_ANSWERS)
def test_philox_known_answers(server: emulation.Emulated, seed: int, counter: list[int], expected: list[int]) -> None:
    words = int32(*counter)
    server.launch("philox", torch.tensor([seed - 2**64 if seed >= 2**63 else seed]), words)
    assert unsigned(words).tolist() == expected


def test_philox(server: emulation.Emulated) -> None:
    seed, counters = -0x0123456789ABCDEF, torch.randint(0, 2**32, (1000, 4))
    words = counters.to(torch.int32)
    server.launch("philox", torch.tensor([seed]), words)
    expected = torch.stack(philox_reference(seed % 2**64, tuple(counters.unbind(1))), 1)
    assert torch.equal(unsigned(words), expected)


def source_lane(kind: str, lane: int, by: int, width: int) -> int:
    """CUDA C++ Programming Guide, "Warp shuffle functions": each segment of `width` lanes is one by itself; a lane
    whose source would be outside (for xor: in a later segment) gets its own value."""
    segment = lane // width
    source = {
        "index": segment * width + by % width,
        "xor": lane ^ by,
        "up": lane - by,
        "down": lane + by,
    }[kind]
    allowed = source // width <= segment if kind == "xor" else source // width == segment
    return source if allowed else lane


@pytest.mark.parametrize("width", [32, 16, 8, 4, 2, 1])
@pytest.mark.parametrize("kind", ["index", "xor", "up", "down"])
def test_shuffle(server: emulation.Emulated, kind: str, width: int) -> None:
    for by in (0, 1, 2, 3, 5, 8, 16, 17, 31):
        values, out = torch.randn(32), torch.zeros(32)
        server.launch(f"shuffle_{kind}", int32(ALL, by, width), values, out)
        expected = values[[source_lane(kind, lane, by, width) for lane in range(32)]]
        assert torch.equal(out, expected), f"by {by}"


def test_shuffle_of_some_lanes(server: emulation.Emulated) -> None:
    # Lanes 8 to 15 exchange values while the others do not take part.
    values, out = torch.randn(32), torch.full((32,), -1.0)
    server.launch("shuffle_xor", int32(0xFF00, 4, 32), values, out)
    expected = torch.full((32,), -1.0)
    expected[8:16] = values[[lane ^ 4 for lane in range(8, 16)]]
    assert torch.equal(out, expected)


@pytest.mark.parametrize("mask", [ALL, 0x0000FFFF, 0x12345678, 1 << 31])
@pytest.mark.parametrize("likely", [0.0, 0.5, 1.0])
def test_votes(server: emulation.Emulated, mask: int, likely: float) -> None:
    predicates = (torch.rand(32) < likely).to(torch.int32) * 7  # anything but 0 is true
    out = torch.full((32, 3), -1, dtype=torch.int32)
    server.launch("votes", int32(mask), predicates, out)
    members = [lane for lane in range(32) if mask >> lane & 1]
    ballot = sum(1 << lane for lane in members if predicates[lane])
    for lane in range(32):
        expected = [ballot, int(ballot != 0), int(ballot == mask)] if lane in members else [ALL, ALL, ALL]
        assert unsigned(out[lane]).tolist() == expected


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(server: emulation.Emulated, transposed: bool) -> None:
    """PTX ISA, "ldmatrix": of the 8 x 8 matrix m, whose rows lanes 8 m to 8 m + 7 point at, lane i receives elements
    2 (i % 4) and the next of row i / 4; of the transpose where that is asked for."""
    rows = torch.randint(-(2**15), 2**15, (32, 8)).to(torch.int16)
    out = torch.zeros(32, 4, 2, dtype=torch.int16)
    server.launch("ldmatrix_x4_trans" if transposed else "ldmatrix_x4", rows, out)
    matrices = rows.view(4, 8, 8).transpose(1, 2) if transposed else rows.view(4, 8, 8)
    expected = matrices.reshape(4, 32, 2).transpose(0, 1)  # pairs of a matrix, row by row, are lanes 0, 1, ...
    assert torch.equal(out, expected)


def fragment_a(a: Tensor) -> Tensor:
    """PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type", matrix A (16 x 16): element i of lane l
    is at row l / 4, + 8 for i in 2, 3, 6, 7; column 2 (l % 4) + i % 2, + 8 for i >= 4."""
    lane, i = torch.arange(32).view(32, 1), torch.arange(8)
    return a[lane // 4 + 8 * (i // 2 % 2), lane % 4 * 2 + i % 2 + 8 * (i // 4)]


def fragment_b(b: Tensor) -> Tensor:
    """The same of matrix B (16 x 8): row 2 (l % 4) + i % 2, + 8 for i >= 2; column l / 4."""
    lane, i = torch.arange(32).view(32, 1), torch.arange(4)
    return b[lane % 4 * 2 + i % 2 + 8 * (i // 2), lane // 4]


def fragment_d(d: Tensor) -> Tensor:
    """The same of matrices C and D (16 x 8): row l / 4, + 8 for i >= 2; column 2 (l % 4) + i % 2."""
    lane, i = torch.arange(32).view(32, 1), torch.arange(4)
    return d[lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2]


@pytest.mark.parametrize(("kernel", "element"), [("mma_bf16", torch.bfloat16), ("mma_f16", torch.float16)])
def test_mma(server: emulation.Emulated, kernel: str, element: torch.dtype) -> None:
    a, b, c = torch.randn(16, 16).to(element), torch.randn(16, 8).to(element), torch.randn(16, 8)
    d = fragment_d(c).contiguous()
    server.launch(kernel, fragment_a(a).contiguous(), fragment_b(b).contiguous(), d)
    exact = c.double() + a.double() @ b.double()
    # Products are exact and summed in fp64; one rounding to fp32 at the end.
    torch.testing.assert_close(d.double(), fragment_d(exact), rtol=2**-24, atol=1e-12)
