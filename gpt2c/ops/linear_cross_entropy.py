"""The language model's head and its loss in one: mean cross entropy of x weight^T, without the (N, V) logits.

    loss = cross_entropy(x weight[:vocab_size]^T, targets)

Rows are taken a chunk at a time: logits = x_chunk weight^T (gpt2c/ops/matmul.py), then their softmax, loss and
gradient in place (csrc/cpu/cross_entropy.cpp), then dx_chunk = dlogits weight and dweight += dlogits^T x_chunk. So
the gradients are ready when the loss is, nothing is computed twice, and memory holds one chunk of logits (Hsu et al.,
"Liger Kernel", 2024, section 3.2, has the same idea). The backward hands them on, multiplied in place by dloss, and
computes them again if it is run again. A weight that is frozen gets none. In fp16 they are of the sum over rows, and
divided by their number together with the multiplication by dloss, in fp32: probabilities over that number vanish in
fp16, and the dloss that lifts them (65536 by custom) is beyond it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2c import _native
from gpt2c.ops._library import (
    check_dims,
    check_shape,
    check_tensors,
    define,
    in_transform,
    lowered,
    needs_grad,
)
from gpt2c.ops.cross_entropy import check_targets, count_targets, cross_entropy_reference
from gpt2c.ops.matmul import multiply

# Rows of a chunk. On the CPU, 51 MB of fp32 logits at GPT-2's vocabulary: larger chunks gain nothing in the matrix
# products. On an H100 products of 256 rows leave most of it idle: with 2048 rows, and classes as in `_summed_classes`,
# training GPT-2 124M (bf16, B64 x T1024) went from 283,673 to 435,958 tokens a second.
CHUNK_ROWS = {"cpu": 256, "cuda": 2048}


def linear_cross_entropy_reference(
    x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100, vocab_size: int | None = None
) -> Tensor:
    return cross_entropy_reference(x @ weight[:vocab_size].T, targets, ignore_index)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100, vocab_size: int | None = None
) -> Tensor:
    """loss = mean over rows that are not ignored of the cross entropy of x[n] weight^T against targets[n].

    x (N, C), weight (Vp, C) fp32, bf16 or, on CUDA, fp16; targets (N) int64, each in [0, vocab_size) or ignore_index.
    Only the first vocab_size rows of weight (all of them for None) are classes; the others, padding, get zero gradient.
    Returns the loss, 0-dim fp32; nan if every row is ignored, as in torch. Raises IndexError for a target out of range,
    ValueError or TypeError for a wrong shape, dtype or device.
    """
    need_dweight = torch.is_grad_enabled() and needs_grad(weight)
    need_dx = need_dweight or (torch.is_grad_enabled() and needs_grad(x))
    return _forward(x, weight, targets, ignore_index, vocab_size, need_dx, need_dweight)[0]


def _check_forward(
    x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, vocab_size: int | None, need_dx: bool,
    need_dweight: bool,
) -> None:  # fmt: skip
    op = "linear_cross_entropy"
    check_dims(op, "x", x, "N C")
    check_dims(op, "weight", weight, "V C")
    (N, C), Vp = x.shape, weight.shape[0]
    check_tensors(op, x=x, weight=weight)
    check_shape(op, "weight", weight, (Vp, C))
    check_targets(op, targets, x, N)
    if vocab_size is not None and not 0 < vocab_size <= Vp:
        raise ValueError(f"{op}: vocab_size is {vocab_size}, expected 1 to {Vp}, the rows of weight")


def _run_forward(
    x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, vocab_size: int | None, need_dx: bool,
    need_dweight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    N, Vp = x.shape[0], weight.shape[0]
    vocab_size = Vp if vocab_size is None else vocab_size
    targets = targets.contiguous()
    count = count_targets("linear_cross_entropy", targets, vocab_size, ignore_index)
    _, dx, dweight, _ = _fake_forward(x, weight, targets, ignore_index, vocab_size, need_dx, need_dweight)
    chunk, summed = CHUNK_ROWS.get(x.device.type, 256), _summed_classes(x, vocab_size, Vp)
    logits = x.new_empty(min(N, chunk), Vp)
    lse = torch.empty(len(logits), dtype=torch.float64, device=x.device)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    one = torch.ones((), dtype=torch.float32, device=x.device)
    per_row = one / torch.as_tensor(count, device=x.device).clamp_min(1)
    now, later = (one, per_row) if x.dtype == torch.float16 else (per_row, one)
    for start in range(0, N, chunk):
        rows = slice(start, min(start + chunk, N))
        n = rows.stop - start
        multiply(x[rows], weight.T, logits[:n])
        sizes = (n, vocab_size, Vp, ignore_index)
        _native.call("cross_entropy_forward", x.dtype, logits, targets[rows], lse, total, *sizes)
        if need_dx:
            _native.call("cross_entropy_backward", x.dtype, now, logits, targets[rows], lse, logits, *sizes, 1)
            multiply(logits[:n, :summed], weight[:summed], dx[rows])
        if need_dweight:
            multiply(logits[:n].T, x[rows], dweight, accumulate=start > 0)
    if N == 0:
        dweight.zero_()
    return (total / count).float(), dx, dweight, later


def _summed_classes(x: Tensor, vocab_size: int, Vp: int) -> int:
    """How many columns of dlogits make dx. GPUs' fast products need a multiple of 8, so up to 7 columns of padding,
    whose gradient is zero, come along there."""
    return vocab_size if x.device.type == "cpu" else min(Vp, -(-vocab_size // 8) * 8)


def _fake_forward(
    x: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, vocab_size: int | None, need_dx: bool,
    need_dweight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    loss = torch.empty((), dtype=torch.float32, device=x.device)
    dx = x.new_empty(x.shape if need_dx else 0)
    dweight = torch.empty(weight.shape if need_dweight else 0, dtype=torch.float32, device=x.device)
    return loss, dx, dweight, torch.empty_like(loss)


def _scale(x: Tensor, scale: Tensor) -> Tensor:
    """x * scale, in x's place."""
    # torch.compile's tracing and vmap cannot tell that nobody else sees x.
    if type(x) is not Tensor or in_transform():
        return (x.float() * scale).to(x.dtype)
    if scale.device.type == "cpu" and float(scale) == 1:  # a GPU would be waited for
        return x
    return x.mul_(scale) if x.dtype == scale.dtype else x.copy_(x.float() * scale)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, targets, ignore_index, vocab_size, need_dx, need_dweight):
        ctx.settings = ignore_index, vocab_size, True, ctx.needs_input_grad[1]
        loss, *gradients = _forward(x, weight, targets, *ctx.settings)
        ctx.save_for_backward(x, weight, targets)
        ctx.gradients = gradients
        ctx.mark_non_differentiable(*gradients)
        ctx.set_materialize_grads(False)  # else zeros of their sizes would be made for the backward
        return loss, *gradients

    @staticmethod
    def backward(ctx, dloss, _dx, _dweight, _later):
        x, weight, _ = ctx.saved_tensors
        dx, dweight, later = ctx.gradients or _forward(*ctx.saved_tensors, *ctx.settings)[1:]
        if torch.is_grad_enabled():  # with create_graph, nothing is changed in place
            dx, dweight = _backward(dloss, x, weight, dx, dweight, later)
        else:
            ctx.gradients = None  # they are the receiver's from here on
            scale = dloss * later
            dx, dweight = _scale(dx, scale), _scale(dweight, scale).to(dx.dtype)
        return dx, dweight if ctx.needs_input_grad[1] else None, None, None, None, None, None


def _run_backward(
    dloss: Tensor, x: Tensor, weight: Tensor, dx: Tensor, dweight: Tensor, later: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to x and weight, on which dx and dweight depend, multiplied by dloss."""
    scale = dloss * later
    return (dx.float() * scale).to(dx.dtype), (dweight * scale).to(dx.dtype)


def _fake_backward(
    dloss: Tensor, x: Tensor, weight: Tensor, dx: Tensor, dweight: Tensor, later: Tensor
) -> tuple[Tensor, Tensor]:
    return dx.new_empty(dx.shape), dx.new_empty(dweight.shape)


_forward = define(
    "linear_cross_entropy_forward(Tensor x, Tensor weight, Tensor targets, SymInt ignore_index, SymInt? vocab_size,"
    " bool need_dx, bool need_dweight) -> (Tensor loss, Tensor dx, Tensor dweight, Tensor later)",
    _check_forward,
    _run_forward,
    _fake_forward,
    _LinearCrossEntropy,
    lowered,
)
_backward = define(
    "linear_cross_entropy_backward(Tensor dloss, Tensor x, Tensor weight, Tensor dx, Tensor dweight, Tensor later)"
    " -> (Tensor, Tensor)",
    lambda *args: None,  # all are what the forward gave
    _run_backward,
    _fake_backward,
)
