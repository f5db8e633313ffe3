"""How an operation becomes a torch operator, and the checks that all of them share."""

from __future__ import annotations

import functools
import hashlib
import numbers
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

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
    autocast: Callable[[torch.dtype, list[Tensor]], torch.dtype] | None = None,
) -> Callable:
    """Defines ``gpt2c::<schema>`` and returns a function that calls it, with arguments of the schema's kinds.

    All are given the operator's arguments: `check` raises where they are wrong, `run` allocates and calls the kernel,
    `fake` gives empty outputs (for ``torch.compile`` and the Meta backend). `autograd`, whose ``forward`` calls the
    operator, makes it differentiable; without it the operator refuses inputs that need a gradient. `autocast`,
    `lowered` or `promoted`, is how floating inputs become of one dtype under torch.autocast.

    ``define`` with an ``autograd.Function`` under the Autograd key, rather than ``torch.library.custom_op`` and
    ``register_autograd``: measured on 8x8 inputs, 113 us against 149 us forward and backward (torch 2.13). The call
    always goes through torch's dispatcher, which resolves or refuses what a kernel cannot read (negated views,
    subclasses, other layouts) and lets compilers, transforms and profilers listen. Past it where nobody listens, a step
    of a model of 0.8 million parameters would take 3 % less at 16 tokens and 1.6 % less at 1024.
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

    label = name.removesuffix("_").removesuffix("_forward")

    def below(*args: object) -> object:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    def differentiable(*args: object) -> object:
        refuse_forward_mode(label, args)
        if not (torch.is_grad_enabled() and any(map(needs_grad, args))):
            return below(*args)
        if autograd is not None:
            result = _apply(autograd, *args)
        elif label.endswith("_backward"):
            result = _apply(_Once, label.removesuffix("_backward"), below, args, *_tensors_of(args))
        else:
            raise NotImplementedError(f"{label}: is not differentiable, expected no input that requires a gradient")
        return list(result) if schema.endswith("[]") else result

    LIBRARY.impl(name, differentiable, "Autograd")
    if hasattr(torch.library, "register_vmap"):  # older versions of torch have their fallback only
        torch.library.register_vmap(f"gpt2c::{name}", _vmap_rule(op, label), lib=LIBRARY)
    if autocast:
        for device in ("cpu", "cuda"):
            LIBRARY.impl(name, _autocast_rule(op, device, autocast), f"Autocast{device.upper()}")
    kinds = _kinds(schema)

    def call(*args: object) -> object:
        if torch.compiler.is_compiling():  # whose numbers may be symbols
            return op(*args)
        return op(*[kind(label, given, arg) for (given, kind), arg in zip(kinds, args, strict=True)])

    return call


def in_transform() -> bool:
    """Within one of torch.func's transforms."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _apply(function: type[torch.autograd.Function], *args: object) -> object:
    if not in_transform():
        return function.apply(*args)
    with enable_single_level_autograd_function():  # Function.apply refuses transforms, of which one is left here
        return super(torch.autograd.Function, _in_one_transform(function)).apply(*args)


@functools.cache
def _in_one_transform(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """The function with a forward that the transforms around this one take the derivative of: without gradients, as
    forwards are called, they would take it for zero."""

    class InOneTransform(function):
        @staticmethod
        def forward(ctx, *args):
            with torch.enable_grad(), torch._C._AutoDispatchBelowAutograd():
                return function.forward(ctx, *args)

    return InOneTransform


class _Once(torch.autograd.Function):
    """A backward, which goes well until somebody asks for its result's own derivative: with create_graph, which
    torch.func always has, the first derivative alone may be wanted. torch's once_differentiable would take the second
    for zero wherever the incoming gradient is a constant."""

    @staticmethod
    def forward(ctx, op, backward, args, *tensors):
        ctx.op = op
        result = backward(*args)
        return tuple(result) if isinstance(result, list) else result

    @staticmethod
    def backward(ctx, *grads):
        raise no_second_derivative(ctx.op)


def no_second_derivative(op: str) -> NotImplementedError:
    return NotImplementedError(
        f"{op}: has no second derivative, expected one backward; its reference in gpt2c.ops has all derivatives"
    )


def _tensors_of(args: Sequence[object]) -> list[Tensor]:
    flat = (x for arg in args for x in (arg if isinstance(arg, (list, tuple)) else [arg]))
    return [x for x in flat if isinstance(x, Tensor)]


def _vmap_rule(op: Callable, label: str) -> Callable:
    """One sample after another, as torch's own fallback, which knows no lists."""

    def sample(arg: object, dim: object, i: int) -> object:
        if isinstance(arg, (list, tuple)):
            return [sample(item, dim and dim[j], i) for j, item in enumerate(arg)]
        return arg if dim is None else arg.select(dim, i)

    def in_turn(info: object, dims: tuple, *args: object) -> tuple[object, object]:
        if op._schema.is_mutable:
            raise NotImplementedError(f"{label}: changes its arguments in place, expected no torch.vmap around it")
        if info.batch_size == 0:
            raise ValueError(f"{label}: torch.vmap over 0 samples, expected one or more")
        pairs = list(zip(args, dims, strict=True))
        results = [op(*[sample(arg, dim, i) for arg, dim in pairs]) for i in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        kind = type(results[0])
        return kind(map(torch.stack, zip(*results, strict=True))), kind([0] * len(results[0]))

    return in_turn


def refuse_forward_mode(op: str, args: Sequence[object]) -> None:
    """NotImplementedError if one of the tensors has a tangent: kernels would drop it."""
    if getattr(forward_ad, "_current_level", 0) < 0:  # as unpack_dual asks for each tensor: no tangents anywhere
        return
    if any(map(_has_tangent, args)):
        raise NotImplementedError(
            f"{op}: has no forward-mode derivative (torch.func.jvp, jacfwd, hessian, dual numbers), expected a"
            " backward; its reference in gpt2c.ops has all derivatives"
        )


def _has_tangent(arg: object) -> bool:
    if isinstance(arg, (list, tuple)):
        return any(map(_has_tangent, arg))
    return isinstance(arg, Tensor) and forward_ad.unpack_dual(arg).tangent is not None


def lowered(dtype: torch.dtype, floating: list[Tensor]) -> torch.dtype:
    """As torch has it for matrix products and attention: autocast's own dtype."""
    return dtype


def promoted(dtype: torch.dtype, floating: list[Tensor]) -> torch.dtype:
    """The widest of the inputs': the kernel's arithmetic is fp32 in either, which is why torch casts to fp32."""
    return functools.reduce(torch.promote_types, (x.dtype for x in floating))


def _autocast_rule(op: Callable, device: str, rule: Callable) -> Callable:
    def cast_and_call(*args: object) -> object:
        args = autocasted(rule, torch.get_autocast_dtype(device), args)
        with torch.autocast(device, enabled=False):
            return op(*args)

    return cast_and_call


def autocasted(rule: Callable, dtype: torch.dtype, args: Sequence[object]) -> list[object]:
    """The arguments with all floating tensors in the rule's dtype, but those that autocast leaves alone (float64)."""
    floating = [x for arg in args for x in (arg if isinstance(arg, (list, tuple)) else [arg]) if _is_cast(x)]
    if not floating:
        return list(args)
    wanted = rule(dtype, floating)

    def cast(arg: object) -> object:
        if isinstance(arg, (list, tuple)):
            return [cast(item) for item in arg]
        return arg.to(wanted) if _is_cast(arg) else arg

    return [cast(arg) for arg in args]


def _is_cast(arg: object) -> bool:
    return isinstance(arg, Tensor) and arg.is_floating_point() and arg.dtype != torch.float64


def needs_grad(arg: object) -> bool:
    if isinstance(arg, (list, tuple)):
        return any(map(needs_grad, arg))
    return isinstance(arg, Tensor) and arg.requires_grad


def as_integer(op: str, name: str, value: object) -> int:
    """The value as an int. TypeError, one sentence, for whatever is not an integer number: a tensor or a bool, too."""
    if type(value) is int:
        return _within_64_bits(op, name, value)
    if isinstance(value, torch.SymInt):  # of a compiler's dynamic shapes
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{op}: {name} is of type {type(value).__name__}, expected an integer")
    return _within_64_bits(op, name, int(value))


def _within_64_bits(op: str, name: str, value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{op}: {name} is {value}, expected an integer of 64 bits")
    return value


def as_number(op: str, name: str, value: object) -> float:
    """The value as a float. TypeError, one sentence, for whatever is not a real number: a tensor or a bool, too."""
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{op}: {name} is of type {type(value).__name__}, expected a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{op}: {name} is an integer beyond the largest float, expected a number") from None


def as_flag(op: str, name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} is of type {type(value).__name__}, expected True or False")
    return value


def _as_text(op: str, name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{op}: {name} is of type {type(value).__name__}, expected a string")
    return value


_ORDINARY = (Tensor, torch.nn.Parameter)


def as_tensor(op: str, name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} is of type {type(value).__name__}, expected a tensor")
    if value.is_nested or (type(value) not in _ORDINARY and isinstance(value, torch.masked.MaskedTensor)):
        kind = "a nested" if value.is_nested else "a masked"
        raise TypeError(f"{op}: {name} is {kind} tensor, expected an ordinary one (packed documents: see starts)")
    return value


def as_tensors(op: str, name: str, values: object) -> list[Tensor]:
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"{op}: {name} is of type {type(values).__name__}, expected a list of tensors")
    return [as_tensor(op, f"{name}[{i}]", value) for i, value in enumerate(values)]


_KINDS = {"Tensor": as_tensor, "Tensor[]": as_tensors, "SymInt": as_integer, "float": as_number, "bool": as_flag}
_KINDS["str"] = _as_text


def _kinds(schema: str) -> list[tuple[str, Callable]]:
    """Of each of the schema's arguments its name and what it is taken by. The dispatcher would take a tensor for its
    value, and with it drop the gradient that the tensor may need, and names what is wrong in words of its own."""
    kinds = []
    for kind, name in re.findall(r"(Tensor(?:\[\])?\??|\w+\??) (\w+)(?=[,)])", _ALIAS.sub("", schema.split(" -> ")[0])):
        take = _KINDS[kind.removesuffix("?")]
        kinds.append((name, _or_none(take) if kind.endswith("?") else take))
    return kinds


_ALIAS = re.compile(r"(?<=Tensor)\(\w!\)")  # "Tensor(a!)": what is changed in place


def _or_none(take: Callable) -> Callable:
    return lambda op, name, value: None if value is None else take(op, name, value)


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
