"""How an operation becomes a torch operator, and the checks that all of them share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from gpt2c import _native

LIBRARY = torch.library.Library("gpt2c", "DEF")


def _tag_compiled_graphs() -> None:
    """Has torch.compile's cache on disk tell this version of the ops from others: it knows an operator by its name
    alone, and after an upgrade would go on with the older version's backward."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    config = getattr(torch.compiler, "config", None)
    if hasattr(config, "cache_key_tag"):  # older versions of torch have none
        config.cache_key_tag += f"gpt2c-{hashlib.sha256(sources).hexdigest()[:16]}"


_tag_compiled_graphs()


def define(
    schema: str,
    check: Callable,
    run: Callable,
    fake: Callable,
    autograd: type[torch.autograd.Function] | None = None,
) -> Callable:
    """Defines ``gpt2c::<schema>`` and returns a function that calls it.

    All are given the operator's arguments: `check` raises where they are wrong, `run` allocates and calls the kernel,
    `fake` gives empty outputs (for ``torch.compile`` and the Meta backend). `autograd`, whose ``forward`` calls the
    operator, makes it differentiable; without it the operator refuses inputs that need a gradient.

    ``define`` with an ``autograd.Function`` under the Autograd key, rather than ``torch.library.custom_op`` and
    ``register_autograd``: measured on 8x8 inputs, 113 us against 149 us forward and backward (torch 2.13). The function
    goes past the dispatcher where that would only lead back here: layernorm's forward and backward take 98 us then
    instead of 124 (with the cheaper _native.call).
    """
    name = schema[: schema.index("(")]
    LIBRARY.define(schema)

    def checked_run(*args: object) -> object:
        check(*args)
        return run(*args)

    def checked_fake(*args: object) -> object:
        check(*args)
        return fake(*args)

    # One implementation for every device: _native looks at the tensors and picks the kernel.
    LIBRARY.impl(name, checked_run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gpt2c::{name}", checked_fake, lib=LIBRARY)
    op = getattr(torch.ops.gpt2c, name).default

    def below(*args: object) -> object:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    def differentiable(*args: object) -> object:
        if not (torch.is_grad_enabled() and any(map(_needs_grad, args))):
            return below(*args)
        return apply(*args)

    def apply(*args: object) -> object:
        if autograd is None:
            raise NotImplementedError(f"{name}: is not differentiable, expected no input that requires a gradient")
        return autograd.apply(*args)

    LIBRARY.impl(name, differentiable, "Autograd")

    def call(*args: object) -> object:
        if not _is_plain(args):
            return op(*args)
        return (apply if torch.is_grad_enabled() and any(map(_needs_grad, args)) else checked_run)(*args)

    return call


def _is_plain(args: tuple) -> bool:
    """Nobody listens at the dispatcher (compilers, fake tensors, function transforms, autocast, profilers), and all
    tensors are torch's own, in memory that a kernel reads."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd._profiler_enabled()
    ) and all(map(_is_ordinary, args))


def _is_ordinary(arg: object) -> bool:
    kind = type(arg)
    if kind is Tensor or kind is torch.nn.Parameter:
        return arg.is_cpu or arg.is_cuda
    if kind is list or kind is tuple:
        return all(map(_is_ordinary, arg))
    return not isinstance(arg, Tensor)


def _needs_grad(arg: object) -> bool:
    if isinstance(arg, (list, tuple)):
        return any(map(_needs_grad, arg))
    return isinstance(arg, Tensor) and arg.requires_grad


def check_tensors(op: str, dtype: torch.dtype | None = None, **tensors: Tensor) -> None:
    """All tensors on the device of the first and of its dtype (or `dtype`), which a kernel exists for."""
    first_name, first = next(iter(tensors.items()))
    if first.device.type not in ("cpu", "meta"):
        _check_gpu(op, first_name, first.device)
    known = _native.CPU_DTYPES if first.device.type == "cpu" else tuple(_native.DTYPES)
    if dtype is None and first.dtype not in known:
        names = ", ".join(map(str, known[:-1])) + f" or {known[-1]}"
        hint = " (torch.float16 runs on CUDA only)" if first.dtype in _native.DTYPES else ""
        raise TypeError(f"{op}: {first_name} has dtype {first.dtype}, expected {names}{hint}")
    expected = dtype or first.dtype
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided:
            raise TypeError(f"{op}: {name} has the layout {tensor.layout}, expected torch.strided")
        if tensor.device != first.device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, expected {first.device}, where {first_name} is")
        if tensor.dtype != expected:
            like = f" like {first_name}" if dtype is None else ""
            raise TypeError(f"{op}: {name} has dtype {tensor.dtype}, expected {expected}{like}")


def _check_gpu(op: str, name: str, device: torch.device) -> None:
    if device.type != "cuda":
        raise ValueError(f"{op}: {name} is on {device}, expected the CPU or CUDA")
    if _native.CUDA is None:
        raise ValueError(
            f"{op}: {name} is on {device}, expected the CPU: gpt2c was built without CUDA kernels, install it again "
            "where nvcc is"
        )


def check_integers(op: str, name: str, tensor: Tensor, like: Tensor) -> None:
    """`tensor` holds int64 on the device of `like`."""
    if tensor.dtype != torch.int64 or tensor.layout is not torch.strided or tensor.device != like.device:
        raise TypeError(
            f"{op}: {name} has dtype {tensor.dtype} and layout {tensor.layout} on {tensor.device}, expected torch.int64"
            f" and torch.strided on {like.device}"
        )


def check_shape(op: str, name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}, expected {tuple(expected)}")


def check_dims(op: str, name: str, tensor: Tensor, dims: str) -> None:
    """`dims` names the dimensions, one word each: "B T C"."""
    if tensor.dim() != len(dims.split()):
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}, expected ({', '.join(dims.split())})")
