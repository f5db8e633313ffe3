"""Mean cross entropy of logits against target ids.

    loss = mean over n with targets[n] != ignore_index of  logsumexp(logits[n]) - logits[n, targets[n]]

Kernels: csrc/cpu/cross_entropy.cpp, csrc/cuda/cross_entropy.cu.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2c import _native
from gpt2c.ops._library import check_dims, check_integers, check_shape, check_tensors, define


def cross_entropy_reference(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    kept = targets != ignore_index
    logits, targets = logits[kept], targets[kept]
    losses = torch.logsumexp(logits, -1) - logits.gather(-1, targets[:, None])[:, 0]
    return losses.mean()


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int = -100) -> Tensor:
    """loss = mean over rows that are not ignored of logsumexp(logits[n]) - logits[n, targets[n]].

    logits (N, V) fp32, bf16 or, on CUDA, fp16; targets (N) int64, each in [0, V) or ignore_index. Returns the loss,
    0-dim fp32; nan if every row is ignored, as in torch. Raises IndexError for a target out of range (on CUDA, an
    assertion fails on the device instead), ValueError or TypeError for a wrong shape, dtype or device.
    """
    return _forward(logits, targets, ignore_index)[0]


def count_targets(op: str, targets: Tensor, V: int, ignore_index: int) -> int | Tensor:
    """How many targets are not ignored; of targets on a GPU a 0-dim tensor there, which nobody has to wait for.

    Raises IndexError if one is not in [0, V) either; on a GPU an assertion fails there.
    """
    count = _native.count_targets(targets, V, ignore_index)
    if isinstance(count, Tensor):
        return count
    if count < 0:
        n = -1 - count
        raise IndexError(f"{op}: targets[{n}] is {targets[n].item()}, expected [0, {V}) or ignore_index {ignore_index}")
    return count


def check_targets(op: str, targets: Tensor, like: Tensor, N: int) -> None:
    check_shape(op, "targets", targets, (N,))
    check_integers(op, "targets", targets, like)


def _check_forward(logits: Tensor, targets: Tensor, ignore_index: int, op: str = "cross_entropy") -> None:
    check_dims(op, "logits", logits, "N V")
    check_tensors(op, logits=logits)
    check_targets(op, targets, logits, logits.shape[0])


def _run_forward(logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    N, V = logits.shape
    logits, targets = logits.contiguous(), targets.contiguous()
    count = count_targets("cross_entropy", targets, V, ignore_index)
    _, lse = _fake_forward(logits, targets, ignore_index)
    total = torch.zeros((), dtype=torch.float64, device=logits.device)
    _native.call("cross_entropy_forward", logits.dtype, logits, targets, lse, total, N, V, V, ignore_index)
    return (total / count).float(), lse


def _fake_forward(logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    loss = torch.empty((), dtype=torch.float32, device=logits.device)
    return loss, torch.empty(logits.shape[0], dtype=torch.float64, device=logits.device)


def _check_backward(dloss: Tensor, logits: Tensor, targets: Tensor, lse: Tensor, ignore_index: int) -> None:
    op = "cross_entropy_backward"
    _check_forward(logits, targets, ignore_index, op)
    check_tensors(op, torch.float32, dloss=dloss)
    check_shape(op, "dloss", dloss, ())
    check_tensors(op, torch.float64, lse=lse)
    check_shape(op, "lse", lse, tuple(targets.shape))


def _run_backward(dloss: Tensor, logits: Tensor, targets: Tensor, lse: Tensor, ignore_index: int) -> Tensor:
    N, V = logits.shape
    targets = targets.contiguous()
    count = count_targets("cross_entropy_backward", targets, V, ignore_index)
    if isinstance(count, Tensor):
        dloss, count = dloss / count.clamp_min(1), 1
    dlogits = _fake_backward(dloss, logits, targets, lse, ignore_index)
    _native.call(
        "cross_entropy_backward", logits.dtype, dloss, logits.contiguous(), targets, lse.contiguous(), dlogits,
        N, V, V, ignore_index, count,
    )  # fmt: skip
    return dlogits


def _fake_backward(dloss: Tensor, logits: Tensor, targets: Tensor, lse: Tensor, ignore_index: int) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, ignore_index):
        loss, lse = _forward(logits, targets, ignore_index)
        ctx.save_for_backward(logits, targets, lse)
        ctx.ignore_index = ignore_index
        ctx.mark_non_differentiable(lse)
        return loss, lse

    @staticmethod
    def backward(ctx, dloss, _lse):
        logits, targets, lse = ctx.saved_tensors
        return _backward(dloss, logits, targets, lse, ctx.ignore_index), None, None


_forward = define(
    "cross_entropy_forward(Tensor logits, Tensor targets, SymInt ignore_index) -> (Tensor loss, Tensor lse)",
    _check_forward,
    _run_forward,
    _fake_forward,
    _CrossEntropy,
)
_backward = define(
    "cross_entropy_backward(Tensor dloss, Tensor logits, Tensor targets, Tensor lse, SymInt ignore_index) -> Tensor",
    _check_backward,
    _run_backward,
    _fake_backward,
)
