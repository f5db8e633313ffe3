"""Small calls of the ops that reach every CUDA kernel, with three tiles or more where two take turns.

`CASES[name].run()` returns all outputs and gradients, the same bits each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import pytest
import torch
from checks import randn, starts_of, with_grads
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


def embedding(dtype: torch.dtype, V: int, T: int, C: int, starts: Tensor | None = None) -> list[Tensor]:
    torch.manual_seed(0)
    idx, wte, wpe = torch.randint(0, V, (2, T)), randn(V, C, dtype=dtype), randn(T, C, dtype=dtype)
    return with_grads(lambda wte, wpe: ops.embedding(idx, wte, wpe, starts=starts), wte, wpe)


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


class Case(NamedTuple):
    run: Callable[[], list[Tensor]]
    sm: int = 90  # the GPU that the emulator is


NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
DROPOUT = {"dropout_p": 0.3, "seed": torch.tensor([1])}
DOCUMENTS = {"causal": True, "starts": starts_of((1, 70, 121))}
SHORT_DOCUMENTS = {"causal": True, "starts": starts_of((1, 4, 11))}


# Attention's cases have full tiles, so that all lanes take part in each access and bank conflicts are counted as they
# are.
def _tensor_core_cases() -> Iterator[tuple[str, Case]]:
    # GPUs with less shared memory take smaller tiles, for D = 64 only sm_75, which has no bf16.
    gpus = {(64, "bf16"): (90,), (128, "bf16"): (90, 86), (64, "fp16"): (90, 75), (128, "fp16"): (90, 86, 75)}
    for (D, short), sms in gpus.items():
        dtype = next(d for d, name in NAMES.items() if name == short)
        for sm in sms:
            name = f"attention-{short}-{D}-sm_{sm}"
            for kind, settings in (("", {}), ("-dropout", DROPOUT)):
                yield f"{name}{kind}", Case(partial(attention, dtype, D, 128, 192, **settings), sm)
                # With one tile of keys, no barrier between the tiles helps.
                yield f"{name}{kind}-one-tile", Case(partial(attention, dtype, D, 128, 16, **settings), sm)
            yield f"{name}-causal", Case(partial(attention, dtype, D, 128, 128, causal=True), sm)
            yield f"{name}-documents", Case(partial(attention, dtype, D, 192, 192, **DOCUMENTS), sm)
            yield f"{name}-documents-one-tile", Case(partial(attention, dtype, D, 16, 16, **SHORT_DOCUMENTS), sm)


def _other_attention_cases() -> Iterator[tuple[str, Case]]:
    for dtype, short in NAMES.items():
        name = f"attention-{short}"
        # Without tensor cores, which want a positive scale.
        for D, Tq, Tk in ((64, 64, 192), (128, 64, 96), (256, 32, 48)):
            yield f"{name}-{D}-simt", Case(partial(attention, dtype, D, Tq, Tk, scale=-0.1))
            yield f"{name}-{D}-one-query", Case(partial(one_query, dtype, D, 384))
        yield (
            f"{name}-64-simt-causal",
            Case(partial(attention, dtype, 64, 128, 128, causal=True, scale=-0.1, **DROPOUT)),
        )
        yield f"{name}-64-simt-documents", Case(partial(attention, dtype, 64, 192, 192, scale=-0.1, **DOCUMENTS))


def _other_cases() -> Iterator[tuple[str, Case]]:
    for dtype, short in NAMES.items():
        # Three rows to each of the backward's pieces, and two warps to a row; then one row, in single elements.
        yield f"layernorm-{short}", Case(partial(layernorm, dtype, 1030, 288))
        yield f"layernorm-{short}-unaligned", Case(partial(layernorm, dtype, 20, 97))
        # Rows that do not fit into the registers of the backward's threads.
        yield f"layernorm-{short}-long", Case(partial(layernorm, dtype, 9, 4104))
        for kind, more in (("", 0), ("-unaligned", 1)):
            yield f"gelu-{short}{kind}", Case(partial(gelu, dtype, 100, 96 + more))
            yield f"embedding-{short}{kind}", Case(partial(embedding, dtype, 11, 9, 96 + more))
            starts = starts_of((2, 3, 4), (9,))
            yield f"embedding-{short}{kind}-documents", Case(partial(embedding, dtype, 11, 9, 96 + more, starts))
            yield f"cross_entropy-{short}{kind}", Case(partial(cross_entropy, dtype, 9, 3000 + more))
            yield f"adamw-{short}{kind}", Case(partial(adamw, dtype, 20000 + more))


CASES = dict([*_tensor_core_cases(), *_other_attention_cases(), *_other_cases()])


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
