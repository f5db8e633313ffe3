"""The emulator that CUDA kernels run on here is itself tested: kernels that are wrong on purpose, each of which must be
caught for what is wrong with it, and right ones that must pass (tests/emulation/wrong_*.cu)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import emulation
import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.skipif(not emulation.cuda_headers(), reason="CUDA's headers are missing")

ORDERS = ("forward", "reversed", "shuffled:1")
LIMIT = 1  # second


@pytest.fixture(scope="module", params=ORDERS)
def server(request: pytest.FixtureRequest) -> Iterator[emulation.Emulated]:
    yield from closing(f"{request.param},seconds={LIMIT},conflicts")


@pytest.fixture(scope="module")
def one_server() -> Iterator[emulation.Emulated]:
    yield from closing(f"shuffled:1,seconds={LIMIT},conflicts")


def closing(options: str) -> Iterator[emulation.Emulated]:
    server = emulation.emulated(options)
    yield server
    server.close()


def tensors() -> tuple[Tensor, Tensor]:
    """What each test kernel is given: 512 floats to read (those with one tensor write it), 512 to write."""
    return torch.arange(512.0), torch.zeros(512)


RIGHT = (
    "copy",
    "dynamic_shared",
    "static_shared",
    "move16",
    "ldmatrix",
    "read_after_write",
    "write_after_read",
    "two_sums_in_two_scratches",
    "between_lanes",
    "shuffle_of_half",
    "copy_async",
)

OUT_OF_BOUNDS = r"out of bounds: {} of 4 bytes at .*, at wrong_accesses\.cu:\d+ "
RACE = r"race on {}.*: {} at .*wrong_order\.cu:\d+, the first by thread \d+ of {} .*wrong_order\.cu:\d+ "
HERE, ELSEWHERE = "this block with no barrier between at", "another block at"
WRITE, READ, SECOND = "a write after a read", "a read after a write", "a second write"
PENDING = r"{} of shared memory {}.* at wrong_order\.cu:\d+ while a cp\.async into it is under way"

# What a wrong kernel must be caught for, whatever the order of its threads.
WRONG = {
    "copy_reads_too_far": OUT_OF_BOUNDS.format("read"),
    "copy_writes_too_far": OUT_OF_BOUNDS.format("write"),
    "copy_of_nothing": r"out of bounds: read of 4 bytes at \(nil\), which is in no tensor",
    "dynamic_shared_read_too_far": OUT_OF_BOUNDS.format("read"),
    "dynamic_shared_write_too_far": OUT_OF_BOUNDS.format("write"),
    "static_shared_read_too_far": OUT_OF_BOUNDS.format("read"),
    "static_shared_write_too_far": OUT_OF_BOUNDS.format("write"),
    "dynamic_shared_uninitialised": r"read of uninitialised shared memory dynamic shared memory\+0 at wrong_accesses",
    "static_shared_uninitialised": r"read of uninitialised shared memory shared memory place\+0 at wrong_accesses",
    "shared_kept_from_block_to_block": "read of uninitialised shared memory shared memory place",
    "move16_misaligned_read": r"misaligned: read of 16 bytes at tensor \d+\+\d+, at wrong_accesses",
    "move16_misaligned_write": r"misaligned: write of 16 bytes at tensor \d+\+\d+, at wrong_accesses",
    "move8_misaligned_read": r"misaligned: read of 8 bytes at tensor \d+\+\d+, at wrong_accesses",
    "ldmatrix_misaligned": r"ldmatrix at wrong_accesses\.cu:\d+: shared memory rows\+\d+ is not 16-byte aligned",
    "ldmatrix_from_global": r"ldmatrix at wrong_accesses\.cu:\d+: 0x\w+ is not in shared memory",
    "too_much_shared": r"nothing: launch failed with grid 1,1,1, block 32,1,1, 232449 bytes .*: more shared memory",
    "shared_without_attribute": r"49153 bytes .*: more dynamic shared memory than the kernel may have",
    "too_many_threads": "block 1056,1,1, .*: invalid configuration",
    "half_a_warp": "the emulator needs whole warps",
    "too_many_blocks": "grid 1,65536,1, .*: invalid configuration",
    "read_after_write_without_barrier": RACE.format("shared memory place", f"({READ}|{WRITE})", HERE),
    "write_after_read_without_barrier": RACE.format("shared memory place", f"({READ}|{WRITE})", HERE),
    "double_write": RACE.format("tensor", SECOND, HERE),
    "global_read_after_write": RACE.format("tensor", f"({READ}|{WRITE})", HERE),
    "two_sums_in_one_scratch": RACE.format("shared memory scratch", f"({READ}|{WRITE})", HERE),
    "write_by_two_blocks": RACE.format("tensor", SECOND, ELSEWHERE),
    "sum_by_two_blocks": RACE.format("tensor", READ, ELSEWHERE),
    "read_of_another_blocks_write": RACE.format("tensor", f"({READ}|{WRITE})", ELSEWHERE),
    "divergent_barriers": r"divergent barriers: thread 0 is at wrong_order\.cu:\d+, thread 32 at wrong_order\.cu:\d+",
    "barrier_after_return": r"deadlock: 63 of 64 threads wait at the barrier wrong_order.*, the others have ended",
    "barrier_and_shuffle": r"deadlock: thread 0 waits at the barrier wrong_order.*, thread \d+ in the warp's exchange",
    "between_lanes_without_syncwarp": RACE.format("shared memory place", f"({READ}|{WRITE})", HERE),
    "between_lanes_with_shuffle": RACE.format("shared memory place", READ, HERE),
    "between_warps_with_syncwarp": RACE.format("shared memory place", f"({READ}|{WRITE})", HERE),
    "shuffle_from_outside_the_mask": r"shuffle at wrong_order\.cu:\d+: lane 0 reads lane 16, which is not in the mask",
    "shuffle_by_a_lane_outside_the_mask": r"wrong_order\.cu:\d+: the calling lane is not in its mask 0000ffff",
    "divergent_shuffles": r"divergent exchange of a warp: thread \d+ at wrong_order\.cu:\d+ with mask ffffffff, thread",
    "shuffle_after_return": r"deadlock: thread \d+ waits in the warp's exchange .* for a lane that has ended",
    "copy_async_without_wait": PENDING.format("read", "first"),
    "copy_async_with_weak_wait": PENDING.format("read", "second"),
    "copy_async_overwritten": PENDING.format("write", "first"),
    "copy_async_without_barrier": "(race on shared memory first.*this block with no barrier between|"
    + PENDING.format("read", "first")
    + ")",
    "copy_async_at_the_end": "a thread ends with a cp.async under way",
    "copy_async_to_global": r"cp\.async at wrong_order\.cu:\d+: 0x\w+ is not in shared memory",
    "copy_async_misaligned": r"cp\.async at wrong_order\.cu:\d+: shared memory place\+\d+ is not 16-byte aligned",
}


@pytest.mark.parametrize("kernel", WRONG)
def test_wrong(server: emulation.Emulated, kernel: str) -> None:
    with pytest.raises(AssertionError, match=WRONG[kernel]) as caught:
        server.launch(kernel, *tensors())
    assert re.search(r"launch failed with grid \d+,\d+,\d+, block \d+,\d+,\d+, \d+ bytes of dynamic", str(caught.value))


@pytest.mark.parametrize("kernel", RIGHT)
def test_right(server: emulation.Emulated, kernel: str) -> None:
    server.launch(kernel, *tensors())


def test_messages_name_the_thread(one_server: emulation.Emulated) -> None:
    with pytest.raises(AssertionError, match=r"\[block 0,0,0, thread 0\]"):
        one_server.launch("dynamic_shared_uninitialised", *tensors())


LOOPS = ("accesses", "barriers", "arithmetic")


@pytest.mark.parametrize("loop", LOOPS)
def test_endless_loop(one_server: emulation.Emulated, loop: str) -> None:
    message = (
        rf"endless_loop_of_{loop}: launch failed .* after {LIMIT} s of processor time, one thread is at wrong_order"
    )
    with pytest.raises(AssertionError, match=message):
        one_server.launch(f"endless_loop_of_{loop}", *tensors())
    one_server.launch("copy", *tensors())  # the server is still good, and the time that counts is each launch's own


# Cycles beyond one for each 128 bytes, that one access of a warp takes.
CONFLICTS = {
    "banks4_stride0": 0,  # all lanes read one word
    "banks4_stride1": 0,
    "banks4_stride2": 1,
    "banks4_stride3": 0,
    "banks4_stride32": 31,
    "banks8_stride1": 0,
    "banks8_stride2": 2,  # each half of the lanes takes two cycles
    "banks16_stride1": 0,
    "banks16_stride2": 4,  # each quarter takes two
    "banks16_stride8": 4 * 7,
    "banks_ldmatrix": 4 * 7,
    "banks_ldmatrix_swizzled": 0,
}


@pytest.mark.parametrize("kernel", CONFLICTS)
def test_bank_conflicts(server: emulation.Emulated, kernel: str) -> None:
    server.shared_accesses()
    server.launch(kernel, *tensors())
    counted = server.shared_accesses()
    assert len({at.kernel for at in counted}) == 1 and len(counted) == 2  # one line that writes, one that reads
    assert sorted(at.conflicts for at in counted) == [0, CONFLICTS[kernel]]
    assert all(at.accesses > 0 and "wrong_accesses.cu:" in at.line for at in counted)


def test_outputs_are_poisoned(one_server: emulation.Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    one_server.patch(monkeypatch)
    try:
        for kernel, unwritten in (("copy", 0), ("copy_leaves_one_out", 1)):
            out = torch.empty(512)
            one_server.launch(kernel, tensors()[0], out)
            assert out.isnan().sum() == unwritten
    finally:
        torch.set_deterministic_debug_mode("default")


def test_all_kernels_are_tested() -> None:
    there: set[str] = set()
    for path in emulation.FOLDER.glob("wrong_*.cu"):
        there |= set(re.findall(r"^(?:TEST_KERNEL|ONE_TENSOR_KERNEL)\((\w+)[,)]", path.read_text(), re.MULTILINE))
    assert there == {*RIGHT, *WRONG, *CONFLICTS, *(f"endless_loop_of_{loop}" for loop in LOOPS), "copy_leaves_one_out"}
