"""The sum of token and position embeddings.

    x[b, t] = wte[idx[b, t]] + wpe[start + t - starts[b, t]],     starts 0 unless given

(Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.3.) The backward adds the rows
of one token up in the order of their positions, so it is deterministic. Kernels: csrc/cpu/embedding.cpp,
csrc/cuda/embedding.cu.
"""

from __future__ import annotations

import functools
import operator
import sys

import torch
from torch import Tensor

from gpt2c import _native
from gpt2c.ops._library import (
    as_integer,
    autocasted,
    check_dims,
    check_integers,
    check_shape,
    check_tensors,
    define,
    in_transform,
    promoted,
    refuse_forward_mode,
)
from gpt2c.ops.documents import check_starts, checked_starts, positions_of


def embedding_reference(
    idx: Tensor, wte: Tensor, wpe: Tensor, start: int = 0, vocab_size: int | None = None, starts: Tensor | None = None
) -> Tensor:
    assert idx.numel() == 0 or idx.max() < (vocab_size or len(wte))
    positions = start + torch.arange(idx.shape[1], device=idx.device)
    return wte[idx] + wpe[positions if starts is None else positions - starts]


def embedding(
    idx: Tensor, wte: Tensor, wpe: Tensor, start: int = 0, vocab_size: int | None = None, starts: Tensor | None = None
) -> Tensor:
    """x[b, t] = wte[idx[b, t]] + wpe[start + t - starts[b, t]].

    idx (B, T) int64 with ids in [0, vocab_size); wte (Vp, C), wpe (P, C) fp32, bf16 or, on CUDA, fp16; vocab_size at
    most Vp, which it is for None: the rows after it are padding; start in [0, P - T]; starts (B, T) int64, where the
    token's document begins in its row, 0 <= starts[b, t] <= t and never falling along t, or None for 0. Returns x
    (B, T, C). Raises IndexError for an id or a position out of range, ValueError or TypeError for a wrong shape, dtype,
    device or value of starts (on CUDA, ids and starts out of range fail an assertion on the device instead).
    """
    return _forward(idx, wte, wpe, start, vocab_size, starts)


def _check_forward(
    idx: Tensor, wte: Tensor, wpe: Tensor, start: int, vocab_size: int | None, starts: Tensor | None
) -> None:
    check_dims("embedding", "idx", idx, "B T")
    check_dims("embedding", "wte", wte, "V C")
    check_dims("embedding", "wpe", wpe, "P C")
    check_tensors("embedding", wte=wte, wpe=wpe)
    check_integers("embedding", "idx", idx, wte)
    check_shape("embedding", "wpe", wpe, (wpe.shape[0], wte.shape[1]))
    _check_positions("embedding", idx, start, wpe.shape[0])
    if vocab_size is not None and not 0 < vocab_size <= wte.shape[0]:
        raise ValueError(f"embedding: vocab_size is {vocab_size}, expected 1 to {wte.shape[0]}, the rows of wte")
    if starts is not None:
        check_starts("embedding", starts, tuple(idx.shape), wte)


def _run_forward(
    idx: Tensor, wte: Tensor, wpe: Tensor, start: int, vocab_size: int | None, starts: Tensor | None
) -> Tensor:
    (B, T), (Vp, C) = idx.shape, wte.shape
    V = Vp if vocab_size is None else vocab_size
    x = _fake_forward(idx, wte, wpe, start, vocab_size, starts)
    idx, positions = idx.contiguous(), _positions("embedding", start, starts)
    _native.assert_on_device(idx, V)
    bad = _native.call(
        "embedding_forward", wte.dtype, idx, wte.contiguous(), wpe.contiguous(), x, B, T, C, V, start, positions
    )
    if bad >= 0:
        raise IndexError(
            f"embedding: idx[{bad // T}, {bad % T}] is {idx.view(-1)[bad].item()}, expected ids in [0, {V})"
        )
    return x


def _positions(op: str, start: int, starts: Tensor | None) -> Tensor | None:
    """Of each token, for the kernels; None where its column says it."""
    starts = checked_starts(op, starts)
    return None if starts is None else start + positions_of(starts)


def _fake_forward(
    idx: Tensor, wte: Tensor, wpe: Tensor, start: int, vocab_size: int | None, starts: Tensor | None
) -> Tensor:
    return wte.new_empty(*idx.shape, wte.shape[1])


def _check_positions(op: str, idx: Tensor, start: int, P: int) -> None:
    end = start + idx.shape[1]
    if start < 0 or end > P:
        raise IndexError(f"{op}: positions {start} to {end - 1}, expected them in [0, {P}) as wpe has it")


def tied_embedding(
    idx: Tensor, wte: Tensor, wpe: Tensor, start: int = 0, vocab_size: int | None = None, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(embedding(idx, wte, wpe, start, vocab_size, starts), head), where head is wte, for the product with the head.

    wte's two gradients then meet here: the embedding's rows are added to the gradient that arrives for head, in place
    where nobody else holds it. Autograd alone would make a second matrix of wte's size, zero it and add both.
    """
    start = as_integer("embedding", "start", start)
    vocab_size = None if vocab_size is None else as_integer("embedding", "vocab_size", vocab_size)
    device = idx.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        wte, wpe = autocasted(promoted, torch.float32, (wte, wpe))
    if in_transform() and not torch.compiler.is_compiling():  # whose gradients are torch.func's to add up
        return embedding(idx, wte, wpe, start, vocab_size, starts), wte
    refuse_forward_mode("embedding", (wte, wpe))
    return _TiedEmbedding.apply(idx, wte, wpe, start, vocab_size, starts)


def _check_backward(dx: Tensor, idx: Tensor, dwte: Tensor, P: int, start: int, starts: Tensor | None) -> None:
    check_dims("embedding_backward", "idx", idx, "B T")
    check_dims("embedding_backward", "dx", dx, "B T C")
    check_dims("embedding_backward", "dwte", dwte, "V C")
    check_tensors("embedding_backward", dx=dx)
    check_tensors("embedding_backward", torch.float32, dwte=dwte)
    check_integers("embedding_backward", "idx", idx, dx)
    check_shape("embedding_backward", "dx", dx, (*idx.shape, dx.shape[2]))
    check_shape("embedding_backward", "dwte", dwte, (dwte.shape[0], dx.shape[2]))
    if not dwte.is_contiguous():
        raise ValueError(f"embedding_backward: dwte has strides {dwte.stride()}, expected it contiguous")
    _check_positions("embedding_backward", idx, start, P)
    if starts is not None:
        check_starts("embedding_backward", starts, tuple(idx.shape), dx)


def _run_backward(dx: Tensor, idx: Tensor, dwte: Tensor, P: int, start: int, starts: Tensor | None) -> Tensor:
    B, T, C = dx.shape
    positions = _positions("embedding_backward", start, starts)
    V = dwte.shape[0]
    dwpe = torch.empty(P, C, dtype=torch.float32, device=dx.device)
    bad = _native.call(
        "embedding_backward", dx.dtype, idx.contiguous(), _native.stable_order(idx), dx.contiguous(), dwte, dwpe,
        B, T, C, V, P, start, positions, None if positions is None else _native.stable_order(positions),
    )  # fmt: skip
    if bad >= 0:
        raise IndexError(f"embedding_backward: idx[{bad // T}, {bad % T}] is out of range, expected ids in [0, {V})")
    torch.autograd.graph.increment_version(dwte)
    return dwpe.to(dx.dtype)


def _fake_backward(dx: Tensor, idx: Tensor, dwte: Tensor, P: int, start: int, starts: Tensor | None) -> Tensor:
    return dx.new_empty(P, dx.shape[2])


def _check_backward_alone(dx: Tensor, idx: Tensor, V: int, P: int, start: int, starts: Tensor | None) -> None:
    _check_backward(dx, idx, torch.empty(V, dx.shape[-1], dtype=torch.float32, device=dx.device), P, start, starts)


def _run_backward_alone(
    dx: Tensor, idx: Tensor, V: int, P: int, start: int, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    dwte = torch.zeros(V, dx.shape[2], dtype=torch.float32, device=dx.device)
    dwpe = _run_backward(dx, idx, dwte, P, start, starts)
    return dwte.to(dx.dtype), dwpe


def _fake_backward_alone(
    dx: Tensor, idx: Tensor, V: int, P: int, start: int, starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    return dx.new_empty(V, dx.shape[2]), dx.new_empty(P, dx.shape[2])


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, idx, wte, wpe, start, vocab_size, starts):
        x = _forward(idx, wte, wpe, start, vocab_size, starts)  # which refuses what is no matrix
        ctx.save_for_backward(idx, starts)
        ctx.settings = wte.shape[0], wpe.shape[0], start
        return x

    @staticmethod
    def backward(ctx, dx):
        idx, starts = ctx.saved_tensors
        dwte, dwpe = _backward(dx, idx, *ctx.settings, starts)
        return None, dwte, dwpe, None, None, None


class _Probe(torch.autograd.Function):
    """Counts the holders of a gradient that only autograd holds."""

    @staticmethod
    def forward(ctx, counts, x):
        ctx.counts = counts
        return x.clone()

    @staticmethod
    def backward(ctx, dx):
        ctx.counts.append(_holders(dx))
        return None, dx


def _holders(x: Tensor) -> tuple[int, int, int] | None:
    """How often x is held by torch and by Python, and its memory by tensors; None where that cannot be told: when
    tracing, and in older versions of torch."""
    if type(x) is not Tensor or not hasattr(x, "_use_count") or torch.compiler.is_compiling():
        return None
    return x._use_count(), sys.getrefcount(x), torch._C._storage_Use_Count(x.untyped_storage()._cdata)


@functools.cache
def _holders_if_alone() -> tuple[int, int, int]:
    counts: list[tuple[int, int, int]] = []
    with torch.enable_grad():
        x = torch.ones(2, requires_grad=True, dtype=torch.float32, device="cpu")
        torch.autograd.grad((_Probe.apply(counts, x) * 2).sum(), x)
    return counts[0]


def _is_alone(holders: tuple[int, int, int] | None) -> bool:
    """Whether nobody but autograd holds a gradient: not the user who gave it, a hook, or torch.autograd.grad, which was
    asked for it."""
    return holders is not None and all(map(operator.le, holders, _holders_if_alone()))


class _TiedEmbedding(_Embedding):
    @staticmethod
    def forward(ctx, idx, wte, wpe, start, vocab_size, starts):
        return _Embedding.forward(ctx, idx, wte, wpe, start, vocab_size, starts), wte.view_as(wte)

    @staticmethod
    def backward(ctx, dx, dhead):
        if torch.is_grad_enabled():  # with create_graph, nothing is changed in place
            _, dwte, *others = _Embedding.backward(ctx, dx)
            return None, dhead + dwte, *others
        idx, starts = ctx.saved_tensors
        _, P, start = ctx.settings
        is_alone = _is_alone(_holders(dhead))  # before anything here holds it, too
        dwte = dhead.float().contiguous()  # dhead itself, if it is fp32
        if dwte is dhead and not is_alone:
            dwte = dhead.clone()
        dwpe = _backward_(dx, idx, dwte, P, start, starts)
        return None, dwte.to(dx.dtype), dwpe, None, None, None


_forward = define(
    "embedding_forward(Tensor idx, Tensor wte, Tensor wpe, SymInt start, SymInt? vocab_size, Tensor? starts) -> Tensor",
    _check_forward,
    _run_forward,
    _fake_forward,
    _Embedding,
    promoted,
)
_backward_ = define(
    "embedding_backward_(Tensor dx, Tensor idx, Tensor(a!) dwte, SymInt P, SymInt start, Tensor? starts)"
    " -> Tensor dwpe",
    _check_backward,
    _run_backward,
    _fake_backward,
)
_backward = define(
    "embedding_backward(Tensor dx, Tensor idx, SymInt V, SymInt P, SymInt start, Tensor? starts)"
    " -> (Tensor dwte, Tensor dwpe)",
    _check_backward_alone,
    _run_backward_alone,
    _fake_backward_alone,
)
