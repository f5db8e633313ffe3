"""GELU, alone and fused with the bias addition before it.

    tanh:  gelu(x) = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))       what GPT-2 was trained with
    none:  gelu(x) = x Phi(x) = x / 2 (1 + erf(x / sqrt(2)))                 the exact form

(Hendrycks & Gimpel, "Gaussian Error Linear Units", 2016, section 2.) Kernels: csrc/cpu/gelu.cpp,
csrc/cuda/gelu.cu.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpt2c import _native
from gpt2c.ops._library import as_tensor, check_shape, check_tensors, define, promoted


def gelu_reference(x: Tensor, approximate: str = "tanh") -> Tensor:
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return 0.5 * x * torch.erfc(-x / math.sqrt(2))  # erfc, since 1 + erf loses the left tail


def bias_gelu_reference(x: Tensor, bias: Tensor, approximate: str = "tanh") -> Tensor:
    return gelu_reference(x + bias, approximate)


def gelu(x: Tensor, approximate: str = "tanh") -> Tensor:
    """y = gelu(x), elementwise. x (...) fp32, bf16 or, on CUDA, fp16; approximate "tanh" or "none". Returns y like x.

    Raises ValueError for another `approximate`, TypeError for another dtype.
    """
    return _forward(x, None, approximate)


def bias_gelu(x: Tensor, bias: Tensor, approximate: str = "tanh") -> Tensor:
    """y = gelu(x + bias). x (..., C) fp32, bf16 or, on CUDA, fp16; bias (C) of the same dtype. Returns y (..., C).

    Raises ValueError or TypeError where shapes, dtypes or devices differ from that.
    """
    return _forward(x, as_tensor("bias_gelu", "bias", bias), approximate)


def _check_forward(x: Tensor, bias: Tensor | None, approximate: str, op: str = "gelu") -> None:
    if approximate not in ("tanh", "none"):
        raise ValueError(f"{op}: approximate is {approximate!r}, expected 'tanh' or 'none'")
    check_tensors(op, x=x)
    if bias is not None:
        check_tensors(op, x=x, bias=bias)
        check_shape(op, "bias", bias, tuple(x.shape[-1:]))


def _rows_and_columns(x: Tensor) -> tuple[int, int]:
    C = x.shape[-1] if x.dim() else 1
    return (x.numel() // C if C else 0), C


def run_forward(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    y = _fake_forward(x, bias, approximate)
    bias = None if bias is None else bias.contiguous()
    _native.call("gelu_forward", x.dtype, x.contiguous(), bias, y, *_rows_and_columns(x), approximate == "none")
    return y


def _fake_forward(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _check_backward(dy: Tensor, x: Tensor, bias: Tensor | None, approximate: str) -> None:
    _check_forward(x, bias, approximate, "gelu_backward")
    check_tensors("gelu_backward", x=x, dy=dy)
    check_shape("gelu_backward", "dy", dy, tuple(x.shape))


def run_backward(dy: Tensor, x: Tensor, bias: Tensor | None, approximate: str) -> tuple[Tensor, Tensor]:
    dx, dbias = _fake_backward(dy, x, bias, approximate)
    N, C = _rows_and_columns(x)
    _native.call(
        "gelu_backward", x.dtype, dy.contiguous(), x.contiguous(), None if bias is None else bias.contiguous(),
        dx, None if bias is None else dbias, N, C, approximate == "none",
        None if bias is None else _native.workspace(x, C * min(N, 512)),
    )  # fmt: skip
    return dx, dbias


def _fake_backward(dy: Tensor, x: Tensor, bias: Tensor | None, approximate: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(0 if bias is None else bias.shape)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bias, approximate):
        ctx.save_for_backward(x, bias)
        ctx.approximate = approximate
        return _forward(x, bias, approximate)

    @staticmethod
    def backward(ctx, dy):
        x, bias = ctx.saved_tensors
        dx, dbias = _backward(dy, x, bias, ctx.approximate)
        return dx, None if bias is None else dbias, None


_forward = define(
    "gelu_forward(Tensor x, Tensor? bias, str approximate) -> Tensor",
    _check_forward,
    run_forward,
    _fake_forward,
    _Gelu,
    promoted,
)
_backward = define(
    "gelu_backward(Tensor dy, Tensor x, Tensor? bias, str approximate) -> (Tensor dx, Tensor dbias)",
    _check_backward,
    run_backward,
    _fake_backward,
)
