"""The matrix product, with a bias added in the same pass.

    c = a b + bias

On the CPU the kernel is ours (csrc/cpu/matmul.cpp): faster than MKL and oneDNN at GPT-2's shapes, the same bits on any
number of threads and for a row whatever the other rows, and as fast in bf16 as in fp32 on any CPU. On CUDA it is
torch's (cuBLAS).
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2c import _native
from gpt2c.ops._library import check_dims, check_shape, check_tensors, define, lowered


def matmul_reference(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    return a @ b if bias is None else a @ b + bias


def matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """c = a b + bias.

    a (M, K), b (K, N), bias (N) fp32, bf16 or, on CUDA, fp16; any strides (used where they lie if one dimension is
    dense). Sums are fp32. Returns c (M, N). Raises ValueError or TypeError where shapes, dtypes or devices differ from
    that.
    """
    return _forward(a, b, bias)


def multiply(a: Tensor, b: Tensor, c: Tensor, bias: Tensor | None = None, accumulate: bool = False) -> Tensor:
    """c = a b + bias, or c += a b, on tensors that have been checked; c has a's dtype or is fp32. Returns c."""
    if not _native.has_matmul(a):
        return _multiply_by_torch(a, b, c, bias, accumulate)
    a, b = _one_dense(a), _one_dense(b)
    out = (
        c
        if c.dtype == torch.float32 and c.stride(1) == 1
        else torch.empty(c.shape, dtype=torch.float32, device=c.device)
    )
    _native.call(
        "matmul", a.dtype, a, b, None if bias is None else bias.contiguous(), out, a.shape[0], b.shape[1], a.shape[1],
        *a.stride(), *b.stride(), out.stride(0), accumulate and out is c,
    )  # fmt: skip
    if out is not c:
        c.add_(out) if accumulate else c.copy_(out)
    return c


def _multiply_by_torch(a: Tensor, b: Tensor, c: Tensor, bias: Tensor | None, accumulate: bool) -> Tensor:
    if a.dtype != c.dtype:
        return c.add_(a @ b) if accumulate else c.copy_(a @ b)
    if accumulate:
        return torch.addmm(c, a, b, out=c)
    return torch.mm(a, b, out=c) if bias is None else torch.addmm(bias, a, b, out=c)


def _one_dense(x: Tensor) -> Tensor:
    return x if 1 in x.stride() else x.contiguous()


def _check_forward(a: Tensor, b: Tensor, bias: Tensor | None) -> None:
    check_dims("matmul", "a", a, "M K")
    check_dims("matmul", "b", b, "K N")
    check_tensors("matmul", a=a, b=b)
    check_shape("matmul", "b", b, (a.shape[1], b.shape[1]))
    if bias is not None:
        check_tensors("matmul", a=a, bias=bias)
        check_shape("matmul", "bias", bias, (b.shape[1],))


def _run_forward(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return multiply(a, b, _fake_forward(a, b, bias), bias)


def _fake_forward(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, bias):
        ctx.save_for_backward(a, b)
        return _forward(a, b, bias)

    @staticmethod
    def backward(ctx, dc):
        a, b = ctx.saved_tensors
        need_a, need_b, need_bias = ctx.needs_input_grad
        return (
            _forward(dc, b.t(), None) if need_a else None,
            _forward(a.t(), dc, None) if need_b else None,
            dc.sum(0) if need_bias else None,
        )


_forward = define(
    "matmul(Tensor a, Tensor b, Tensor? bias) -> Tensor",
    _check_forward,
    _run_forward,
    _fake_forward,
    _Matmul,
    lowered,
)
