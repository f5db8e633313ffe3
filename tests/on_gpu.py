"""Op tests on a GPU: their tensors stay the CPU's, and each kernel call takes them to the GPU and back.

So every op test runs there unchanged, and what a kernel writes beside its tensors is found without a tool.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gpt2c import _native

GUARD = 512  # bytes on either side of a storage on the GPU; a multiple of every alignment that kernels look for
GUARD_BYTE = 0xA5


def gpu_problem() -> str:
    """Why the CUDA kernels cannot run here, or nothing."""
    if _native.CUDA is None:
        return "gpt2c was built without CUDA kernels"
    gpus = _native.CUDA.device_description()
    if gpus.startswith("no GPU: "):
        return gpus.removeprefix("no GPU: ")
    return "" if torch.cuda.is_available() else "this torch is a build without CUDA"


class GpuBackend:
    """What gpt2c._native does with tensors on a GPU, for tests whose tensors are the CPU's."""

    def run(self, kernel: str, *args: object) -> int | None:
        """Runs the CUDA kernel on the arguments that _native.call was given."""
        raise NotImplementedError

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        """Lets gpt2c call this backend's kernels; and new tensors hold nan (integers their largest value) until they
        are written, so that an element that a kernel leaves out is seen. tests/conftest.py ends that."""
        torch.set_deterministic_debug_mode("error")
        patch.setattr(_native, "call", self.call)
        patch.setattr(_native, "CPU_DTYPES", tuple(_native.DTYPES))
        patch.setattr(_native, "count_targets", _native._count_on_device)
        patch.setattr(_native, "workspace", lambda like, floats: torch.full((floats,), torch.nan))
        patch.setattr(_native, "has_matmul", lambda like: False)
        patch.setattr(_native, "stable_order", _native._stable_order)

    def call(self, kernel: str, *args: object) -> int | None:
        if kernel.startswith("embedding"):  # what torch asserts on a GPU is known at once here
            idx, V = args[1].reshape(-1), args[8 if kernel == "embedding_forward" else 9]
            bad = ((idx < 0) | (idx >= V)).nonzero()
            if len(bad):
                return int(bad[0])
        return self.run(kernel, *args)


class OnGpu(GpuBackend):
    """Copies every storage among the arguments to `device`, calls `kernel_call` there and copies them back."""

    def __init__(self, device: str, kernel_call: Callable[..., int | None]) -> None:
        self.device, self.kernel_call = device, kernel_call

    def run(self, kernel: str, *args: object) -> int | None:
        copies = Copies(self.device)
        sizes = _sizes_of_lists(args)
        result = self.kernel_call(kernel, *[arg if arg is sizes else copies.of(arg) for arg in args])
        copies.take_back(kernel)
        return result


def _sizes_of_lists(args: tuple[object, ...]) -> Tensor | None:
    """The sizes that come after lists of tensors, which stay the host's (csrc/kernels.h)."""
    if not any(isinstance(arg, list) for arg in args):
        return None
    return next(arg for arg in args if isinstance(arg, Tensor) and arg.dtype == torch.int64)


class Copies:
    """Storages on another device, one for each here, so that tensors that share memory do so there too."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}  # bytes here and, between guards, bytes there

    def of(self, arg: object) -> object:
        """The argument with its tensors there."""
        if isinstance(arg, (list, tuple)):
            return type(arg)(self.of(item) for item in arg)
        return self._tensor(arg) if isinstance(arg, Tensor) else arg

    def take_back(self, kernel: str) -> None:
        """What is there now, here; AssertionError if the kernel has written beside it."""
        for here, there in self.pairs.values():
            there = there.cpu()  # waits for the kernel
            before, inside, after = there[:GUARD], there[GUARD:-GUARD], there[-GUARD:]
            assert (before == GUARD_BYTE).all(), f"{kernel}: wrote before a tensor's memory"
            assert (after == GUARD_BYTE).all(), f"{kernel}: wrote behind a tensor's memory"
            here.copy_(inside)

    def _tensor(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.pairs:
            here = torch.empty(0, dtype=torch.uint8).set_(storage)
            there = torch.full((len(here) + 2 * GUARD,), GUARD_BYTE, dtype=torch.uint8)
            there[GUARD:-GUARD] = here
            self.pairs[storage.data_ptr()] = here, there.to(self.device, copy=True)
        there = self.pairs[storage.data_ptr()][1]
        offset = GUARD // tensor.element_size() + tensor.storage_offset()
        like = torch.empty(0, dtype=tensor.dtype, device=self.device)
        return like.set_(there.untyped_storage(), offset, tensor.shape, tensor.stride())
