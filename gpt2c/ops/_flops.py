"""What torch's FlopCounterMode counts for the ops, which it would otherwise take for nothing: their matrix products,
attention's without regard to its mask, as it counts torch's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

import gpt2c.ops.block
import gpt2c.ops.linear_cross_entropy  # noqa: F401, these define the ops

OPS = torch.ops.gpt2c
Shape = Sequence[int]


@register_flop_formula(OPS.matmul)
def _matmul(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(a) * b[-1]


@register_flop_formula(OPS.attention_forward)
def _attention_forward(q: Shape, k: Shape, *_: Any, **__: Any) -> int:
    return 4 * math.prod(q) * k[-2]


@register_flop_formula(OPS.attention_backward)
def _attention_backward(_do: Shape, q: Shape, k: Shape, *_: Any, **__: Any) -> int:
    return 10 * math.prod(q) * k[-2]  # five products, of which one makes the scores again


@register_flop_formula([OPS.block, OPS.block_forward])
def _block_forward(x: Shape, *_: Any, **__: Any) -> int:
    B, T, C = x
    return 24 * B * T * C * C + _attention_forward(x, x)


@register_flop_formula(OPS.block_backward)
def _block_backward(dout: Shape, _dh2: Shape | None, kept: Sequence[Shape], *_: Any, **__: Any) -> int:
    B, T, C = dout
    again = _block_forward(dout) - 8 * B * T * C * C if len(kept) == 3 else 0  # all but the last product
    return 48 * B * T * C * C + _attention_backward(dout, dout, dout) + again


@register_flop_formula(OPS.linear_cross_entropy_forward)
def _linear_cross_entropy(
    x: Shape, weight: Shape, _targets: Shape, _ignored: int, vocab_size: int | None, *wanted: bool, **__: Any
) -> int:
    return (1 + sum(wanted)) * 2 * math.prod(x) * (vocab_size or weight[0])
