"""Fused attention: self, causal and cross, without the (Tq, Tk) matrix.

    o = dropout(softmax(scale * q k^T + mask)) v,     scale = 1 / sqrt(D) unless given

(Vaswani et al., "Attention Is All You Need", 2017, section 3.2.1.) The forward keeps each row's logsumexp, from which
the backward rebuilds the probabilities (Dao, "FlashAttention-2", 2023, section 3.1). Kernels: csrc/cpu/attention.cpp,
csrc/cuda/attention.cu.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpt2c import _native
from gpt2c.ops._library import as_number, check_dims, check_integers, check_shape, check_tensors, define, lowered
from gpt2c.ops.documents import check_starts, checked_starts
from gpt2c.ops.philox import philox_reference

MAX_HEAD_DIM = 256


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    starts: Tensor | None = None,
) -> Tensor:
    (B, H, Tq, D), Tk = q.shape, k.shape[2]
    scores = (q @ k.transpose(-1, -2)) * (1 / math.sqrt(D) if scale is None else scale)
    if causal:
        hidden = torch.ones(Tq, Tk, dtype=torch.bool, device=q.device).triu(Tk - Tq + 1)
        scores = scores.masked_fill(hidden, -math.inf)
    if starts is not None:
        scores = scores.masked_fill(torch.arange(Tk, device=q.device) < starts.view(B, 1, Tq, 1), -math.inf)
    # A row that sees no key has no softmax: zero by definition here.
    p = torch.where(scores.isneginf().all(-1, keepdim=True), torch.zeros_like(scores), scores).softmax(-1)
    p = p * ~scores.isneginf()
    if dropout_p > 0:
        p = p * dropout_mask(seed, dropout_p, B, H, Tq, Tk)
    return p @ v


def dropout_mask(seed: Tensor, dropout_p: float, B: int, H: int, Tq: int, Tk: int) -> Tensor:
    """What dropout multiplies the probabilities by: (B, H, Tq, Tk) of 0 and 1 / (1 - dropout_p), float64."""
    head = torch.arange(B * H, device="cpu").view(B, H, 1, 1)
    i, j = (torch.arange(n, device="cpu") for n in (Tq, (Tk + 3) // 4))
    words = philox_reference(int(seed), (i.view(Tq, 1), j, head, 0 * head))
    words = torch.stack(words, -1).flatten(-2)[..., :Tk]  # word r of counter j decides key 4 j + r
    drop_below, keep_scale = _dropout_constants(dropout_p)
    return torch.where(words >= drop_below, keep_scale, 0.0).double()


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    starts: Tensor | None = None,
) -> Tensor:
    """o = dropout(softmax(scale * q k^T + mask)) v.

    q (B, H, Tq, D); k, v (B, H, Tk, D), D <= 256, fp32, bf16 or, on CUDA, fp16, any strides (used where they lie if the
    last dimension is dense). causal: query i sees key j iff j <= i + Tk - Tq, so the last query sees every key; a query
    that sees none gives zeros; what is hidden must be finite. scale: finite, 1 / sqrt(D) for None. dropout_p in [0, 1):
    probability of dropping an entry; the mask is a function of `seed` (int64, one element, needed when dropout_p > 0)
    and the entry's position alone. starts (B, T) int64, with causal and Tq = Tk = T only: query i sees key j iff
    starts[b, i] <= j <= i, which keeps documents packed in a row apart; 0 <= starts[b, t] <= t, never falling along t.
    Time is that of the pairs that are seen, in tiles. Returns o (B, H, Tq, D), laid out in memory as (B, Tq, H, D).
    Raises ValueError or TypeError where shapes, dtypes, devices or values differ from that (on CUDA, wrong values of
    starts fail an assertion on the device instead).
    """
    dropout_p = as_number("attention", "dropout_p", dropout_p)
    return _forward(q, k, v, causal, scale, dropout_p, seed if dropout_p != 0 else None, starts)[0]


def _check_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None, dropout_p: float, seed: Tensor | None,
    starts: Tensor | None, op: str = "attention",
) -> None:  # fmt: skip
    check_dims(op, "q", q, "B H Tq D")
    check_dims(op, "k", k, "B H Tk D")
    check_tensors(op, q=q, k=k, v=v)
    B, H, _, D = q.shape
    check_shape(op, "k", k, (B, H, k.shape[2], D))
    check_shape(op, "v", v, tuple(k.shape))
    if not 0 < D <= MAX_HEAD_DIM:
        raise ValueError(f"{op}: the head dimension of q is {D}, expected 1 to {MAX_HEAD_DIM}")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"{op}: scale is {scale}, expected a finite number")
    check_dropout(op, dropout_p, seed, q)
    if starts is not None:
        if not causal or k.shape[2] != q.shape[2]:
            raise ValueError(
                f"{op}: starts with causal {causal}, {q.shape[2]} queries and {k.shape[2]} keys, expected causal True"
                " and as many keys as queries"
            )
        check_starts(op, starts, (B, q.shape[2]), q)


def check_dropout(op: str, dropout_p: float, seed: Tensor | None, like: Tensor) -> None:
    """dropout_p is in [0, 1), and above 0 there is a seed, one int64 element where `like` is."""
    if not 0 <= dropout_p < 1:
        raise ValueError(f"{op}: dropout_p is {dropout_p}, expected [0, 1)")
    if dropout_p > 0 and seed is None:
        raise ValueError(f"{op}: dropout_p is {dropout_p} but seed is None, expected an int64 tensor of one element")
    if seed is not None:
        check_integers(op, "seed", seed, like)
        if seed.numel() != 1:
            raise ValueError(f"{op}: seed has shape {tuple(seed.shape)}, expected one element")


def _dropout_constants(dropout_p: float) -> tuple[int, float]:
    """drop_below and keep_scale of the kernels' AttentionShape."""
    return min(round(dropout_p * 2**32), 2**32 - 1), 1 / (1 - dropout_p)


def _shape(
    q: Tensor, k: Tensor, causal: bool, scale: float | None, dropout_p: float, seed: Tensor | None,
    starts: Tensor | None,
) -> tuple:  # fmt: skip
    B, H, Tq, D = q.shape
    scale = 1 / math.sqrt(D) if scale is None else scale
    return (q.dtype, B, H, Tq, k.shape[2], D, causal, scale, seed, *_dropout_constants(dropout_p), starts)


def _dense_rows(*tensors: Tensor) -> list[Tensor]:
    return [t if t.stride(-1) == 1 or t.numel() == 0 else t.contiguous() for t in tensors]


def _strides(*tensors: Tensor) -> list[tuple[int, ...]]:
    return [t.stride()[:3] for t in tensors]


def empty_heads(like: Tensor) -> Tensor:
    """An empty tensor of the shape (B, H, T, D), laid out as (B, T, H, D), which the next layer reads as (B, T, C)."""
    return torch.empty_permuted(like.shape, (0, 2, 1, 3), dtype=like.dtype, device=like.device)


def _check_and_run_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None, dropout_p: float, seed: Tensor | None,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return run_forward(q, k, v, causal, scale, dropout_p, seed, checked_starts("attention", starts))


def run_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None, dropout_p: float, seed: Tensor | None,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """o and lse; all have been checked, and starts is contiguous."""
    q, k, v = _dense_rows(q, k, v)
    o, lse = _fake_forward(q, k, v, causal, scale, dropout_p, seed, starts)
    shape = _shape(q, k, causal, scale, dropout_p, seed, starts)
    B, H, Tq, D = q.shape
    workspace = _native.workspace(q, (D + 4) * B * H * math.ceil(k.shape[2] / 128) if Tq == 1 else 0)
    _native.call("attention_forward", shape, q, k, v, o, lse, *_strides(q, k, v, o), workspace)
    return o, lse


def _fake_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None, dropout_p: float, seed: Tensor | None,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return empty_heads(q), torch.empty(q.shape[:3], dtype=torch.float64, device=q.device)


def _check_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor,
    causal: bool, scale: float | None, dropout_p: float, seed: Tensor | None, starts: Tensor | None,
) -> None:  # fmt: skip
    op = "attention_backward"
    _check_forward(q, k, v, causal, scale, dropout_p, seed, starts, op)
    check_tensors(op, q=q, do=do, o=o)
    check_shape(op, "do", do, tuple(q.shape))
    check_shape(op, "o", o, tuple(q.shape))
    check_tensors(op, torch.float64, lse=lse)
    check_shape(op, "lse", lse, tuple(q.shape[:3]))


def _check_and_run_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor,
    causal: bool, scale: float | None, dropout_p: float, seed: Tensor | None, starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grads = _fake_backward(do, q, k, v, o, lse, causal, scale, dropout_p, seed, starts)
    starts = checked_starts("attention_backward", starts)
    backward_into(grads, do, q, k, v, o, lse, causal, scale, dropout_p, seed, starts)
    return grads


def backward_into(
    grads: tuple[Tensor, Tensor, Tensor], do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor,
    causal: bool, scale: float | None, dropout_p: float, seed: Tensor | None, starts: Tensor | None,
) -> None:  # fmt: skip
    """Writes dq, dk and dv to grads, of any strides with a dense last dimension; the rest is as for run_forward."""
    do, q, k, v, o = _dense_rows(do, q, k, v, o)
    shape = _shape(q, k, causal, scale, dropout_p, seed, starts)
    _native.call(
        "attention_backward", shape, do, q, k, v, o, lse.contiguous(), *grads, *_strides(do, q, k, v, o, *grads),
        _native.workspace(q, 4 * lse.numel()),
    )  # fmt: skip


def _fake_backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor,
    causal: bool, scale: float | None, dropout_p: float, seed: Tensor | None, starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return empty_heads(q), empty_heads(k), empty_heads(v)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal, scale, dropout_p, seed, starts):
        o, lse = _forward(q, k, v, causal, scale, dropout_p, seed, starts)
        ctx.save_for_backward(q, k, v, o, lse, seed, starts)
        ctx.settings = causal, scale, dropout_p
        ctx.mark_non_differentiable(lse)
        return o, lse

    @staticmethod
    def backward(ctx, do, _lse):
        q, k, v, o, lse, seed, starts = ctx.saved_tensors
        return *_backward(do, q, k, v, o, lse, *ctx.settings, seed, starts), None, None, None, None, None


_forward = define(
    "attention_forward(Tensor q, Tensor k, Tensor v, bool causal, float? scale, float dropout_p, Tensor? seed,"
    " Tensor? starts) -> (Tensor o, Tensor lse)",
    _check_forward,
    _check_and_run_forward,
    _fake_forward,
    _Attention,
    lowered,
)
_backward = define(
    "attention_backward(Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, bool causal, float? scale,"
    " float dropout_p, Tensor? seed, Tensor? starts) -> (Tensor dq, Tensor dk, Tensor dv)",
    _check_backward,
    _check_and_run_backward,
    _fake_backward,
)
