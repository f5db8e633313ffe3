"""Layer normalisation over the last dimension, alone and fused with the residual addition before it.

    y = (h - mean(h)) * rstd * weight + bias,    rstd = 1 / sqrt(var(h) + eps),    h = x  or  x + residual

with the biased variance (Ba, Kiros & Hinton, "Layer Normalization", 2016, section 3). Kernels: csrc/cpu/layernorm.cpp,
csrc/cuda/layernorm.cu.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2c import _native
from gpt2c.ops._library import as_tensor, check_shape, check_tensors, define, promoted


def layernorm_reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) * torch.rsqrt(var + eps) * weight + bias


def residual_layernorm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    h = x + residual
    return h, layernorm_reference(h, weight, bias, eps)


def layernorm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """y = (x - mean) * rstd * weight + bias over the last dimension.

    x (..., C) fp32, bf16 or, on CUDA, fp16; weight, bias (C) of the same dtype; eps is added to the variance. Returns y
    (..., C). Raises ValueError or TypeError where shapes, dtypes or devices differ from that.
    """
    return _forward(x, None, weight, bias, eps)[1]


def residual_layernorm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """h = x + residual and y = layernorm(h), in one pass over memory.

    x, residual (..., C) fp32, bf16 or, on CUDA, fp16; weight, bias (C) of the same dtype. Returns (h, y), both (...,
    C). Raises ValueError or TypeError where shapes, dtypes or devices differ from that.
    """
    residual = as_tensor("residual_layernorm", "residual", residual)
    h, y, _, _ = _forward(x, residual, weight, bias, eps)
    return h, y


def _check_forward(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> None:
    if x.dim() == 0:
        raise ValueError("layernorm: x has shape (), expected (..., C)")
    if not eps >= 0:
        raise ValueError(f"layernorm: eps is {eps}, expected 0 or more")
    C = x.shape[-1]
    check_tensors("layernorm", x=x, weight=weight, bias=bias)
    check_shape("layernorm", "weight", weight, (C,))
    check_shape("layernorm", "bias", bias, (C,))
    if residual is not None:
        check_tensors("layernorm", x=x, residual=residual)
        check_shape("layernorm", "residual", residual, tuple(x.shape))


def run_forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if residual is not None:
        residual = residual.contiguous()
    h, y, mean, rstd = _fake_forward(x, residual, weight, bias, eps)
    _native.call(
        "layernorm_forward", x.dtype, x.contiguous(), residual, weight.contiguous(), bias.contiguous(),
        None if residual is None else h, y, mean, rstd, mean.numel(), x.shape[-1], eps,
    )  # fmt: skip
    return h, y, mean, rstd


def _fake_forward(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    h = x.new_empty(0) if residual is None else torch.empty_like(y)
    mean = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    return h, y, mean, torch.empty_like(mean)


def _check_backward(dy: Tensor, dh: Tensor | None, h: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor) -> None:
    if h.dim() == 0:
        raise ValueError("layernorm_backward: h has shape (), expected (..., C)")
    C = h.shape[-1]
    check_tensors("layernorm_backward", h=h, dy=dy, weight=weight)
    check_shape("layernorm_backward", "dy", dy, tuple(h.shape))
    check_shape("layernorm_backward", "weight", weight, (C,))
    check_tensors("layernorm_backward", torch.float32, mean=mean, rstd=rstd)
    check_shape("layernorm_backward", "mean", mean, tuple(h.shape[:-1]))
    check_shape("layernorm_backward", "rstd", rstd, tuple(h.shape[:-1]))
    if dh is not None:
        check_tensors("layernorm_backward", h=h, dh=dh)
        check_shape("layernorm_backward", "dh", dh, tuple(h.shape))


def run_backward(
    dy: Tensor, dh: Tensor | None, h: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if dh is not None:
        dh = dh.contiguous()
    dx, dweight, dbias = _fake_backward(dy, dh, h, weight, mean, rstd)
    _native.call(
        "layernorm_backward", h.dtype, dy.contiguous(), dh, h.contiguous(), weight.contiguous(),
        mean.contiguous(), rstd.contiguous(), dx, dweight, dbias, mean.numel(), h.shape[-1],
        _native.workspace(h, 2 * h.shape[-1] * min(mean.numel(), 512)),
    )  # fmt: skip
    return dx, dweight, dbias


def _fake_backward(
    dy: Tensor, dh: Tensor | None, h: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty_like(h, memory_format=torch.contiguous_format)
    dweight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    return dx, dweight, torch.empty_like(dweight)


class _Layernorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, weight, bias, eps):
        h, y, mean, rstd = _forward(x, residual, weight, bias, eps)
        ctx.fused = residual is not None
        ctx.save_for_backward(h if ctx.fused else x, weight, mean, rstd)
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        return h, y, mean, rstd

    @staticmethod
    def backward(ctx, dh, dy, _mean, _rstd):
        h, weight, mean, rstd = ctx.saved_tensors
        if not ctx.fused:
            dh = None
        if dy is None:  # only h was used
            return dh, dh, None, None, None
        dx, dweight, dbias = _backward(dy, dh, h, weight, mean, rstd)
        return dx, dx if ctx.fused else None, dweight, dbias, None


_forward = define(
    "layernorm_forward(Tensor x, Tensor? residual, Tensor weight, Tensor bias, float eps)"
    " -> (Tensor h, Tensor y, Tensor mean, Tensor rstd)",
    _check_forward,
    run_forward,
    _fake_forward,
    _Layernorm,
    promoted,
)
_backward = define(
    "layernorm_backward(Tensor dy, Tensor? dh, Tensor h, Tensor weight, Tensor mean, Tensor rstd)"
    " -> (Tensor dx, Tensor dweight, Tensor dbias)",
    _check_backward,
    run_backward,
    _fake_backward,
)
