"""The extension's only importer: every kernel call goes through `call`, every choice of a backend is made here.

``GPT2C_FORCE_ISA`` names the CPU backend to use (see `available_isas`); without it the best one that this machine can
run is taken when the module is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

try:
    import gpt2c._ext as _ext
except ModuleNotFoundError as error:
    raise ImportError(
        "gpt2c's compiled extension is missing: install the package with `pip install .`, and run Python outside of its"
        " source folder"
    ) from error

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # the numbers of csrc/dtype.h
DTYPE_NUMBERS = {**DTYPES, torch.int8: 3}  # and of what only weights can be
CPU_DTYPES = (torch.float32, torch.bfloat16)  # what the CPU's kernels take of them

CUDA = getattr(_ext, "cuda", None)  # the CUDA kernels, if they were built


def available_isas() -> list[str]:
    """The CPU backends that this machine can run, from the least to the most capable."""
    return _ext.available_isas()


def active_isa() -> str:
    """The CPU backend in use."""
    return _ext.active_isa()


def set_isa(name: str) -> None:
    """Takes the CPU backend `name`, or the best one if it is empty.

    Raises ValueError if this machine cannot run it.
    """
    if not _ext.set_isa(name):
        known = ", ".join(available_isas())
        raise ValueError(f"the ISA {name!r} is not available on this machine, expected one of {known}")


class Addresses(list):
    """A list of tensors, whose addresses are looked up once: of GPT-2's 150 that takes 0.1 ms, of a token's 4."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__(tensors)
        self.lowered = [_lower(tensor) for tensor in tensors]


def keep_heap() -> bool:
    """Makes the C library keep freed memory for the next step, instead of returning it to the system page by page.

    Measured on GPT-2 124M, B4 x T64: 194,000 page faults a step become 2, and 2161 ms become 1770 ms. For the whole
    process, and for good. Returns False where there is nothing to tune (no glibc).
    """
    return _ext.keep_heap()


def call(kernel: str, *args: object) -> int | None:
    """Runs a kernel of csrc/kernels.h on the arguments of its contract, in order, without the last (threads).

    Tensors, and tensors within tuples and lists, become their addresses, None a null pointer and a dtype its number.
    An address is a tuple of one int, so that the extension, which takes numbers from Python's own types alone, can tell
    a tensor where a number belongs, and a number where a tensor does: TypeError.
    """
    if FORCED_ISA_PROBLEM:
        raise ValueError(FORCED_ISA_PROBLEM)
    values = [arg if type(arg) in _NUMBERS else _lower(arg) for arg in args]
    values.append(torch.get_num_threads())
    gpu = _gpu_of(args)
    return getattr(_ext, kernel)(*values) if gpu < 0 else _call_cuda(kernel, values, gpu)


def _call_cuda(kernel: str, values: list[object], gpu: int) -> int | None:
    """Queues the kernel on torch's current stream of that GPU. Neither waits nor allocates (CUDA graphs)."""
    with torch.cuda.device(gpu):  # afterwards the caller's GPU is the current one again, which set_stream changes
        CUDA.set_stream(gpu, torch.cuda.current_stream(gpu).cuda_stream)
        return getattr(CUDA, kernel)(*values)


def _gpu_of(args: Sequence[object]) -> int:
    """The GPU that holds the first tensor, and so all but lists of sizes (csrc/kernels.h); -1 for the CPU."""
    for arg in args:
        if isinstance(arg, Tensor):
            return arg.get_device()
        if isinstance(arg, list):
            return _gpu_of(arg)
    raise AssertionError("a kernel's arguments hold a tensor")


def cuda_status() -> str:
    """Whether there are CUDA kernels, for which GPUs, and which this machine has, or why torch and they have none."""
    if CUDA is None:
        return "not built (see the README's Install)"
    torch_cuda = "" if torch.version.cuda else "; this torch is a build without CUDA"
    return f"built by nvcc {CUDA.build_description()}; {CUDA.device_description()}{torch_cuda}"


def workspace(like: Tensor, floats: int) -> Tensor | None:
    """Memory for a kernel's intermediate results (`workspace` in csrc/kernels.h), or None where none is needed."""
    return None if like.device.type == "cpu" else torch.empty(floats, dtype=torch.float32, device=like.device)


def stable_order(ids: Tensor) -> Tensor | None:
    """The positions in ids, stably sorted by id, for the kernels of a GPU; None for the CPU's, which need none."""
    return None if ids.device.type == "cpu" else _stable_order(ids)


def _stable_order(ids: Tensor) -> Tensor:
    return torch.sort(ids.reshape(-1), stable=True).indices


def has_matmul(like: Tensor) -> bool:
    """Whether there is a kernel `matmul` where the tensor is."""
    return like.device.type == "cpu"


def assert_on_device(ids: Tensor, V: int) -> None:
    """Has a GPU check that ids are in [0, V), without waiting for it. Nothing on the CPU, where the kernel tells."""
    if ids.device.type != "cpu":
        torch._assert_async(((ids >= 0) & (ids < V)).all(), f"embedding: an id is not in [0, {V})")


def count_targets(targets: Tensor, V: int, ignore_index: int) -> int | Tensor:
    """The kernel cross_entropy_count, the only one that needs no threads. On a GPU torch counts, see csrc/kernels.h."""
    if targets.device.type != "cpu":
        return _count_on_device(targets, V, ignore_index)
    return _ext.cross_entropy_count(_lower(targets), targets.numel(), V, ignore_index)


def _count_on_device(targets: Tensor, V: int, ignore_index: int) -> Tensor:
    kept = targets != ignore_index
    in_range = ~kept | ((targets >= 0) & (targets < V))
    torch._assert_async(in_range.all(), f"cross_entropy: a target is neither in [0, {V}) nor ignore_index")
    return kept.sum()


_NUMBERS = frozenset((int, float, bool))  # most arguments, passed as they are: asked first, as calls cost microseconds


def _lower(arg: object) -> object:
    if isinstance(arg, Tensor):
        if arg.numel() and not arg.untyped_storage().nbytes():
            raise ValueError(f"a tensor of shape {tuple(arg.shape)} has no memory, its storage has been freed")
        return (arg.data_ptr(),)
    if isinstance(arg, torch.dtype):
        return DTYPE_NUMBERS[arg]
    if isinstance(arg, Addresses):
        return arg.lowered
    if isinstance(arg, (tuple, list)):
        return [item if type(item) in _NUMBERS else _lower(item) for item in arg]
    return arg


# A forked child has its parent's team of threads without the threads. Its first parallel region, torch's own as well as
# ours, would wait for them for ever (GNU's OpenMP cannot be forked). With one thread there is no region.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

# Told by the first kernel call, or by the command line, and not by the import, where it could only be a traceback.
FORCED_ISA_PROBLEM = ""
try:
    set_isa(os.environ.get("GPT2C_FORCE_ISA", ""))
except ValueError as error:
    FORCED_ISA_PROBLEM = f"GPT2C_FORCE_ISA: {error}"
