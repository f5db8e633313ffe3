"""Small calls of the ops that reach every CUDA kernel, with three tiles or more where two take turns.

`CASES[name]()` returns all outputs and gradients, the same bits each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from checks import randn, with_grads
from torch import Tensor

import emulation
from gpt2c import ops

ORDERS = ("forward", "reversed", "shuffled:1", "shuffled:2", "shuffled:3")


def attention(dtype: torch.dtype, D: int, Tq: int, Tk: int, **settings: object) -> list[Tensor]:
    torch.manual_seed(0)
    q, k, v = (randn(1, 1, T, D, dtype=dtype) for T in (Tq, Tk, Tk))
    return with_grads(lambda q, k, v: ops.attention(q, k, v, **settings), q, k, v)


def one_query(dtype: torch.dtype, D: int, Tk: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [ops.attention(*(randn(1, 2, T, D, dtype=dtype) for T in (1, Tk, Tk)))]


def layernorm(dtype: torch.dtype, N: int, C: int) -> list[Tensor]:
    torch.manual_seed(0)
    x, residual, weight, bias = (randn(*shape, dtype=dtype) for shape in ((N, C), (N, C), (C,), (C,)))
    return with_grads(ops.residual_layernorm, x, residual, weight, bias)


def gelu(dtype: torch.dtype, N: int, C: int) -> list[Tensor]:
    torch.manual_seed(0)
    return with_grads(ops.bias_gelu, randn(N, C, dtype=dtype), randn(C, dtype=dtype))


def embedding(dtype: torch.dtype, V: int, T: int, C: int) -> list[Tensor]:
    torch.manual_seed(0)
    idx = torch.randint(0, V, (2, T))
    return with_grads(lambda wte, wpe: ops.embedding(idx, wte, wpe), randn(V, C, dtype=dtype), randn(T, C, dtype=dtype))


def cross_entropy(dtype: torch.dtype, N: int, V: int) -> list[Tensor]:
    torch.manual_seed(0)
    targets = torch.randint(0, V, (N,))
    return with_grads(lambda logits: ops.cross_entropy(logits, targets), randn(N, V, dtype=dtype))


def adamw(dtype: torch.dtype, size: int) -> list[Tensor]:
    torch.manual_seed(0)
    params, grads = ([randn(n, dtype=dtype) for n in (size, 7)] for _ in range(2))
    m, v = ([torch.zeros(n) for n in (size, 7)] for _ in range(2))
    ops.adamw_(params, grads, m, v, step=1, lr=1e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
    return [*params, *m, *v, ops.grad_norm(grads)]


NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def _attention_cases() -> Iterator[tuple[str, Callable[[], list[Tensor]]]]:
    """With full tiles, so that all lanes take part in each access and bank conflicts are counted as they are."""
    dropout = {"dropout_p": 0.3, "seed": torch.tensor([1])}
    for dtype, short in NAMES.items():
        name = f"attention-{short}"
        if dtype != torch.float32:  # on tensor cores
            for D in (64, 128):
                for kind, settings in (("", {}), ("-dropout", dropout)):
                    yield f"{name}-{D}{kind}", partial(attention, dtype, D, 128, 192, **settings)
                    # With one tile of keys, no barrier between the tiles helps.
                    yield f"{name}-{D}{kind}-one-tile", partial(attention, dtype, D, 128, 32, **settings)
            yield f"{name}-64-causal", partial(attention, dtype, 64, 192, 192, causal=True)
        # Without tensor cores, which want a positive scale.
        for D, Tq, Tk in ((64, 64, 192), (128, 64, 96), (256, 32, 48)):
            yield f"{name}-{D}-simt", partial(attention, dtype, D, Tq, Tk, scale=-0.1)
            yield f"{name}-{D}-one-query", partial(one_query, dtype, D, 384)
        yield f"{name}-64-simt-causal", partial(attention, dtype, 64, 128, 128, causal=True, scale=-0.1, **dropout)


def _other_cases() -> Iterator[tuple[str, Callable[[], list[Tensor]]]]:
    for dtype, short in NAMES.items():
        # Three rows to each of the backward's pieces, and two warps to a row; then one row, in single elements.
        yield f"layernorm-{short}", partial(layernorm, dtype, 1030, 288)
        yield f"layernorm-{short}-unaligned", partial(layernorm, dtype, 20, 97)
        for kind, more in (("", 0), ("-unaligned", 1)):
            yield f"gelu-{short}{kind}", partial(gelu, dtype, 100, 96 + more)
            yield f"embedding-{short}{kind}", partial(embedding, dtype, 11, 9, 96 + more)
            yield f"cross_entropy-{short}{kind}", partial(cross_entropy, dtype, 9, 3000 + more)
            yield f"adamw-{short}{kind}", partial(adamw, dtype, 20000 + more)


CASES = dict([*_attention_cases(), *_other_cases()])


@contextmanager
def running(options: str = "shuffled:1") -> Iterator[emulation.Emulated]:
    """The ops run on an emulator of these options within the block."""
    server = emulation.emulated(options)
    with pytest.MonkeyPatch.context() as patch:
        server.patch(patch)
        try:
            yield server
        finally:
            torch.set_deterministic_debug_mode("default")
            server.close()


def same_bits(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(_bits(x), _bits(y)) for x, y in zip(a, b, strict=True))


def _bits(x: Tensor) -> Tensor:
    return x.detach().contiguous().view(-1).view(torch.uint8)  # a nan equals itself
