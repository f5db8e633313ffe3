"""One transformer layer (Radford et al. 2019, section 2.3) as one operation, so that little is kept for its backward.

    h1 = x + h                            y1 = layernorm(h1)
    q, k, v = y1 W_qkv + b_qkv            a = dropout(attention(q, k, v) W_o + b_o)
    h2 = a + h1                           y2 = layernorm(h2)
    out = dropout(gelu(y2 W_1 + b_1) W_2 + b_2)

The layer hands on its last branch, out, and the stream it belongs to, h2, apart: the next layernorm adds them up. Kept
are h1, qkv, the attention's output, h2 and y2 W_1: 10 C floats a token, where autograd over single operations would
keep 16. Layernorm's and gelu's results are made again in the backward: passes that cost 1 % of a step. With
`recompute`, only h1 is kept, C floats a token, and all but the last product is computed again (Chen et al., "Training
Deep Nets with Sublinear Memory Cost", 2016).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2c.ops._library import (
    as_number,
    check_dims,
    check_shape,
    check_tensors,
    define,
    lowered,
    no_second_derivative,
)
from gpt2c.ops.attention import MAX_HEAD_DIM, attention_reference, backward_into, check_dropout, empty_heads
from gpt2c.ops.attention import run_forward as attention_forward
from gpt2c.ops.documents import check_starts, checked_starts
from gpt2c.ops.gelu import run_backward as gelu_backward
from gpt2c.ops.gelu import run_forward as gelu_forward
from gpt2c.ops.layernorm import layernorm_reference
from gpt2c.ops.layernorm import run_backward as layernorm_backward
from gpt2c.ops.layernorm import run_forward as layernorm_forward
from gpt2c.ops.matmul import multiply


class Weights(NamedTuple):
    """Of a layer, in the order of its modules' parameters. C width; matrices are (in, out)."""

    ln_1_weight: Tensor  # (C)
    ln_1_bias: Tensor
    qkv_weight: Tensor  # (C, 3C)
    qkv_bias: Tensor
    o_weight: Tensor  # (C, C)
    o_bias: Tensor
    ln_2_weight: Tensor  # (C)
    ln_2_bias: Tensor
    fc_weight: Tensor  # (C, 4C)
    fc_bias: Tensor
    proj_weight: Tensor  # (4C, C)
    proj_bias: Tensor


class Cache(Protocol):
    """Keys and values of the tokens before."""

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]: ...


class Kept(NamedTuple):
    """What the forward leaves for the backward; of the first three only, with recompute."""

    h1: Tensor  # (N, C)
    mask1: Tensor  # what dropout keeps of a and out, (N, C) bool, or empty
    mask2: Tensor
    mean1: Tensor  # (N) fp32
    rstd1: Tensor
    qkv: Tensor  # (N, 3C)
    o: Tensor  # (B, H, T, D), in memory (N, C)
    lse: Tensor  # (B, H, T) fp64
    h2: Tensor
    mean2: Tensor
    rstd2: Tensor
    fc: Tensor  # (N, 4C), without the bias


H2 = Kept._fields.index("h2")


def block_reference(
    x: Tensor, h: Tensor | None, weights: Weights, n_head: int, eps: float = 1e-5, starts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    (B, T, C), w = x.shape, Weights(*weights)
    h1 = x if h is None else x + h
    y = layernorm_reference(h1, w.ln_1_weight, w.ln_1_bias, eps)
    q, k, v = (y @ w.qkv_weight + w.qkv_bias).view(B, T, 3, n_head, C // n_head).permute(2, 0, 3, 1, 4)
    o = attention_reference(q, k, v, causal=True, starts=starts).transpose(1, 2).reshape(B, T, C)
    h2 = h1 + o @ w.o_weight + w.o_bias
    y = layernorm_reference(h2, w.ln_2_weight, w.ln_2_bias, eps)
    return F.gelu(y @ w.fc_weight + w.fc_bias, approximate="tanh") @ w.proj_weight + w.proj_bias, h2


def block(
    x: Tensor,
    h: Tensor | None,
    weights: Weights,
    n_head: int,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    recompute: bool = False,
    starts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, h2) of the layer on x + h; h is None in the first layer.

    x, h (B, T, C) fp32, bf16 or, on CUDA, fp16, C a multiple of n_head; weights of the same dtype. dropout_p: of the
    attention's probabilities, whose mask is a function of `seed` (int64, one element), and of both branches, whose
    masks torch's generator draws. recompute: keep less for the backward and compute it again. starts (B, T)
    int64: attention from starts[b, t] on, see ops.attention. Raises ValueError or TypeError where shapes, dtypes,
    devices or values differ from that.
    """
    dropout_p = as_number("block", "dropout_p", dropout_p)
    if not isinstance(weights, (list, tuple)) or len(weights) != len(Weights._fields):
        raise TypeError(f"block: weights are no list of {len(Weights._fields)} tensors, expected a BlockWeights")
    seed = seed if dropout_p != 0 else None
    return _block(x, h, n_head, eps, dropout_p, seed, starts, recompute, *weights)


def cached_block(
    x: Tensor, h: Tensor | None, weights: Weights, n_head: int, eps: float, cache: Cache
) -> tuple[Tensor, Tensor]:
    """block for tokens that come after those of the cache, which takes theirs up; not differentiable."""
    _check_forward(x, h, weights, n_head, eps, 0.0, None, None, 0)
    kept, y = _run_attention_half(x, h, Weights(*weights), n_head, eps, 0.0, None, None, cache)
    return _run_mlp_half(kept, y, Weights(*weights), 0.0)[0].view(x.shape), kept.h2.view(x.shape)


def _check_forward(
    x: Tensor, h: Tensor | None, weights: list[Tensor], n_head: int, eps: float, dropout_p: float,
    seed: Tensor | None, starts: Tensor | None, keep: int,
) -> None:  # fmt: skip
    check_dims("block", "x", x, "B T C")
    C = x.shape[2]
    if n_head < 1 or C % n_head:
        raise ValueError(f"block: n_head is {n_head}, expected a divisor of {C}, the width of x")
    if not 0 < C // n_head <= MAX_HEAD_DIM:
        raise ValueError(f"block: the head dimension is {C // n_head}, expected 1 to {MAX_HEAD_DIM}")
    if not eps >= 0:
        raise ValueError(f"block: eps is {eps}, expected 0 or more")
    if h is not None:
        check_tensors("block", x=x, h=h)
        check_shape("block", "h", h, tuple(x.shape))
    named = Weights(*weights)._asdict()
    check_tensors("block", x=x, **named)
    wide = {"qkv_weight": (C, 3 * C), "qkv_bias": (3 * C,), "o_weight": (C, C), "fc_weight": (C, 4 * C)}
    wide |= {"fc_bias": (4 * C,), "proj_weight": (4 * C, C)}
    for name, weight in named.items():
        check_shape("block", name, weight, wide.get(name, (C,)))
    check_dropout("block", dropout_p, seed, x)
    if starts is not None:
        check_starts("block", starts, tuple(x.shape[:2]), x)


def _run_forward(
    x: Tensor, h: Tensor | None, weights: list[Tensor], n_head: int, eps: float, dropout_p: float,
    seed: Tensor | None, starts: Tensor | None, keep: int,
) -> list[Tensor]:  # fmt: skip
    """keep: how many of Kept's fields are returned after out and h2."""
    w = Weights(*weights)
    starts = checked_starts("block", starts)
    kept, y = _run_attention_half(x, h, w, n_head, eps, dropout_p, seed, starts, None)
    out, kept = _run_mlp_half(kept, y, w, dropout_p)
    h2 = kept.h2.view(x.shape)
    # An operator's outputs are tensors of their own: h2 is not kept twice, and neither is x if it is all of h1.
    return [out.view(x.shape), h2, *(_own(field, name, h) for name, field in list(kept._asdict().items())[:keep])]


def _own(field: Tensor, name: str, h: Tensor | None) -> Tensor:
    return field.new_empty(0) if name == "h2" or (name == "h1" and h is None) else field


def _run_attention_half(
    x: Tensor, h: Tensor | None, w: Weights, n_head: int, eps: float, dropout_p: float, seed: Tensor | None,
    starts: Tensor | None, cache: Cache | None,
) -> tuple[Kept, Tensor]:  # fmt: skip
    """Kept, still without fc and mask2, and y2."""
    B, T, C = x.shape
    x = x.reshape(B * T, C)
    h1, y, mean1, rstd1 = layernorm_forward(
        x, None if h is None else h.reshape(B * T, C), w.ln_1_weight, w.ln_1_bias, eps
    )
    h1 = x if h is None else h1
    qkv = multiply(y, w.qkv_weight, x.new_empty(B * T, 3 * C), w.qkv_bias)
    q, k, v = _heads(qkv, B, T, n_head)
    if cache is not None:
        k, v = cache.append(k, v)
        check_tensors("block", q=q, k=k, v=v)
        check_shape("block", "the cache's keys", k, (B, n_head, max(T, k.shape[2]), C // n_head))
        check_shape("block", "the cache's values", v, tuple(k.shape))
    o, lse = attention_forward(q, k, v, True, None, dropout_p, seed, starts)
    a, mask1 = _dropout(multiply(_rows(o), w.o_weight, torch.empty_like(h1), w.o_bias), dropout_p)
    h2, y, mean2, rstd2 = layernorm_forward(a, h1, w.ln_2_weight, w.ln_2_bias, eps)
    none = x.new_empty(0)
    return Kept(h1, mask1, none, mean1, rstd1, qkv, o, lse, h2, mean2, rstd2, none), y


def _run_mlp_half(kept: Kept, y: Tensor, w: Weights, dropout_p: float) -> tuple[Tensor, Kept]:
    fc = multiply(y, w.fc_weight, y.new_empty(len(y), w.fc_weight.shape[1]))
    g = gelu_forward(fc, w.fc_bias, "tanh")
    out, mask2 = _dropout(multiply(g, w.proj_weight, torch.empty_like(y), w.proj_bias), dropout_p)
    return out, kept._replace(fc=fc, mask2=mask2)


def _dropout(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    return torch.native_dropout(x, p, True) if p > 0 else (x, x.new_empty(0, dtype=torch.bool))


def _dropped(dx: Tensor, mask: Tensor, p: float) -> Tensor:
    return torch.ops.aten.native_dropout_backward(dx, mask, 1 / (1 - p)) if p > 0 else dx


def _heads(qkv: Tensor, B: int, T: int, n_head: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v (B, H, T, D) as views of (B T, 3C)."""
    parts = qkv.view(B, T, 3, n_head, qkv.shape[1] // (3 * n_head)).permute(2, 0, 3, 1, 4)
    return parts[0], parts[1], parts[2]


def _rows(o: Tensor) -> Tensor:
    """(B, H, T, D) as (B T, C), where it lies: attention writes (B, T, H, D)."""
    B, H, T, D = o.shape
    return o.transpose(1, 2).reshape(B * T, H * D)


def _fake_forward(
    x: Tensor, h: Tensor | None, weights: list[Tensor], n_head: int, eps: float, dropout_p: float,
    seed: Tensor | None, starts: Tensor | None, keep: int,
) -> list[Tensor]:  # fmt: skip
    B, T, C = x.shape
    N = B * T
    rows, stats = x.new_empty(N, C), torch.empty(N, dtype=torch.float32, device=x.device)
    mask = torch.empty((N, C) if dropout_p > 0 else 0, dtype=torch.bool, device=x.device)
    o = empty_heads(x.new_empty(B, n_head, T, C // n_head))
    lse = torch.empty(B, n_head, T, dtype=torch.float64, device=x.device)
    kept = Kept(
        rows, mask, mask, stats, stats, x.new_empty(N, 3 * C), o, lse, rows, stats, stats, x.new_empty(N, 4 * C)
    )
    fields = (_own(field, name, h) for name, field in list(kept._asdict().items())[:keep])
    return [x.new_empty(x.shape), x.new_empty(x.shape), *(torch.empty_like(field) for field in fields)]


def _check_backward(
    dout: Tensor, dh2: Tensor | None, kept: list[Tensor], weights: list[Tensor], n_head: int, eps: float,
    dropout_p: float, seed: Tensor | None, starts: Tensor | None,
) -> None:  # fmt: skip
    check_tensors("block_backward", dout=dout, **Weights(*weights)._asdict())
    if starts is not None:
        check_starts("block_backward", starts, tuple(dout.shape[:2]), dout)


def _run_backward(
    dout: Tensor, dh2: Tensor | None, kept: list[Tensor], weights: list[Tensor], n_head: int, eps: float,
    dropout_p: float, seed: Tensor | None, starts: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    """The gradient of x, which is h's too, and those of the weights."""
    w, starts = Weights(*weights), checked_starts("block_backward", starts)
    full = (
        _recompute(kept, w, dout.shape, n_head, eps, dropout_p, seed, starts)
        if len(kept) < len(Kept._fields)
        else Kept(*kept)
    )
    dh2, mlp = _run_mlp_backward(full, w, dout.reshape(full.h1.shape), dh2, eps, dropout_p)
    dx, attn = _run_attention_backward(full, w, dh2, dout.shape[:2], n_head, eps, dropout_p, seed, starts)
    return [dx.view(dout.shape), *attn, *mlp]


def _recompute(
    kept: list[Tensor], w: Weights, shape: torch.Size, n_head: int, eps: float, dropout_p: float, seed: Tensor | None,
    starts: Tensor | None,
) -> Kept:  # fmt: skip
    """All of Kept from its first fields."""
    h1, mask1, mask2 = kept
    B, T, C = shape
    _, y, mean1, rstd1 = layernorm_forward(h1, None, w.ln_1_weight, w.ln_1_bias, eps)
    qkv = multiply(y, w.qkv_weight, h1.new_empty(B * T, 3 * C), w.qkv_bias)
    o, lse = attention_forward(*_heads(qkv, B, T, n_head), True, None, dropout_p, seed, starts)
    a = multiply(_rows(o), w.o_weight, torch.empty_like(h1), w.o_bias)
    a = _dropped(a, mask1, dropout_p)  # forward and backward multiply by the same
    h2, y, mean2, rstd2 = layernorm_forward(a, h1, w.ln_2_weight, w.ln_2_bias, eps)
    fc = multiply(y, w.fc_weight, h1.new_empty(B * T, 4 * C))
    return Kept(h1, mask1, mask2, mean1, rstd1, qkv, o, lse, h2, mean2, rstd2, fc)


def _run_mlp_backward(
    kept: Kept, w: Weights, dout: Tensor, dh2: Tensor | None, eps: float, dropout_p: float
) -> tuple[Tensor, list[Tensor]]:
    dout = _dropped(dout, kept.mask2, dropout_p)
    g = gelu_forward(kept.fc, w.fc_bias, "tanh")
    dproj = multiply(g.t(), dout, torch.empty_like(w.proj_weight))
    dg = multiply(dout, w.proj_weight.t(), g)  # g has been used
    dfc, dfc_bias = gelu_backward(dg, kept.fc, w.fc_bias, "tanh")
    del g, dg
    _, y, _, _ = layernorm_forward(kept.h2, None, w.ln_2_weight, w.ln_2_bias, eps)
    dfc_weight = multiply(y.t(), dfc, torch.empty_like(w.fc_weight))
    dy = multiply(dfc, w.fc_weight.t(), y)
    dh = None if dh2 is None else dh2.reshape(y.shape)
    dh, dweight, dbias = layernorm_backward(dy, dh, kept.h2, w.ln_2_weight, kept.mean2, kept.rstd2)
    return dh, [dweight, dbias, dfc_weight, dfc_bias, dproj, dout.sum(0)]


def _run_attention_backward(
    kept: Kept, w: Weights, dh2: Tensor, batch: torch.Size, n_head: int, eps: float, dropout_p: float,
    seed: Tensor | None, starts: Tensor | None,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    da = _dropped(dh2, kept.mask1, dropout_p)
    do_weight = multiply(_rows(kept.o).t(), da, torch.empty_like(w.o_weight))
    do_bias = da.sum(0)
    do = multiply(da, w.o_weight.t(), torch.empty_like(da)).view(*batch, n_head, da.shape[1] // n_head)
    do = do.transpose(1, 2)
    dqkv = torch.empty_like(kept.qkv)
    heads = _heads(kept.qkv, *batch, n_head)
    backward_into(
        _heads(dqkv, *batch, n_head), do, *heads, kept.o, kept.lse, True, None, dropout_p, seed, starts
    )  # fmt: skip
    del do
    _, y, _, _ = layernorm_forward(kept.h1, None, w.ln_1_weight, w.ln_1_bias, eps)
    dqkv_weight = multiply(y.t(), dqkv, torch.empty_like(w.qkv_weight))
    dy = multiply(dqkv, w.qkv_weight.t(), y)
    dx, dweight, dbias = layernorm_backward(dy, dh2, kept.h1, w.ln_1_weight, kept.mean1, kept.rstd1)
    return dx, [dweight, dbias, dqkv_weight, dqkv.sum(0), do_weight, do_bias]


def _fake_backward(
    dout: Tensor, dh2: Tensor | None, kept: list[Tensor], weights: list[Tensor], n_head: int, eps: float,
    dropout_p: float, seed: Tensor | None, starts: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    return [dout.new_empty(dout.shape), *(w.new_empty(w.shape) for w in weights)]


class _Forward(torch.autograd.Function):
    """With what is kept as an output: transforms around this one (torch.func) ask for its derivative, too."""

    @staticmethod
    def forward(ctx, x, h, n_head, eps, dropout_p, seed, starts, keep, *weights):
        ctx.settings = n_head, eps, dropout_p, seed, starts
        out, h2, *kept = _forward(x, h, *ctx.settings, keep, *weights)
        saved = kept if h is not None else [x, *kept[1:]]
        if keep > H2:
            saved = [*saved[:H2], h2, *saved[H2 + 1 :]]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*saved, *weights)
        return out, h2, *kept

    @staticmethod
    def backward(ctx, dout, dh2, *dkept):
        if any(d is not None for d in dkept):
            raise no_second_derivative("block")
        saved = ctx.saved_tensors
        kept, weights = saved[: -len(Weights._fields)], saved[-len(Weights._fields) :]
        kept = [t.reshape(-1, t.shape[-1]) if t.dim() == 3 and t.dtype != torch.float64 else t for t in kept]
        dout = torch.zeros_like(dh2) if dout is None else dout
        dx, *grads = _backward(dout, dh2, kept, list(weights), *ctx.settings)
        has_h = ctx.needs_input_grad[1]
        return dx, dx if has_h else None, None, None, None, None, None, None, *grads


class _Block(_Forward):
    @staticmethod
    def forward(ctx, x, h, n_head, eps, dropout_p, seed, starts, recompute, *weights):
        keep = 3 if recompute else len(Kept._fields)
        return _Forward.forward(ctx, x, h, n_head, eps, dropout_p, seed, starts, keep, *weights)[:2]


def _weights_last(function: Callable) -> Callable:
    return lambda x, h, n_head, eps, dropout_p, seed, starts, keep, *weights: function(
        x, h, list(weights), n_head, eps, dropout_p, seed, starts, keep
    )


_WEIGHTS = ", ".join(f"Tensor {name}" for name in Weights._fields)
_forward = define(
    "block_forward(Tensor x, Tensor? h, SymInt n_head, float eps, float dropout_p, Tensor? seed, Tensor? starts,"
    f" SymInt keep, {_WEIGHTS}) -> Tensor[]",
    _weights_last(_check_forward),
    _weights_last(_run_forward),
    _weights_last(_fake_forward),
    _Forward,
)
_backward = define(
    "block_backward(Tensor dout, Tensor? dh2, Tensor[] kept, Tensor[] weights, SymInt n_head, float eps,"
    " float dropout_p, Tensor? seed, Tensor? starts) -> Tensor[]",
    _check_backward,
    _run_backward,
    _fake_backward,
)


def _run_whole(
    x: Tensor, h: Tensor | None, n_head: int, eps: float, dropout_p: float, seed: Tensor | None, starts: Tensor | None,
    recompute: bool, *weights: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out, h2 = _forward(x, h, n_head, eps, dropout_p, seed, starts, 0, *weights)
    return out, h2


_block = define(
    "block(Tensor x, Tensor? h, SymInt n_head, float eps, float dropout_p, Tensor? seed, Tensor? starts,"
    f" bool recompute, {_WEIGHTS}) -> (Tensor out, Tensor h2)",
    lambda *args: None,  # the parts check theirs
    _run_whole,
    _run_whole,
    _Block,
    lowered,
)
