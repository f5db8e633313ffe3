#!/usr/bin/env python3
"""The largest error of each CUDA kernel, run on the emulator of tests/emulation, beside that of PyTorch's own op.

Both compute in the same dtype, from the same inputs, on the CPU, and are compared with PyTorch's op in float64. An
error is the largest difference of an element over the largest element; the backward's is the worst of all gradients.

    python python/cuda_errors.py --write     also keeps the table in docs/cuda.md
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from cuda_compile import ROOT
from cuda_table import markdown, write_between
from packages import missing
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpt2c import _native, ops

sys.path.insert(0, str(ROOT / "tests"))
try:
    from cuda_launches import DTYPE_NAMES
    from emulation.cases import running
except ModuleNotFoundError as error:
    missing(error)


@dataclass(frozen=True)
class Args:
    """The largest error of each CUDA kernel beside that of PyTorch's own op."""

    write: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Keep the table in docs/cuda.md."""


@dataclass(frozen=True)
class Case:
    """ours and torchs take the inputs, which are drawn from the normal distribution with these shapes."""

    op: str
    torch_op: str
    shapes: dict[str, tuple[int, ...]]
    ours: Callable[..., Tensor]
    torchs: Callable[..., Tensor]
    gradients: bool = True
    dtypes: tuple[torch.dtype, ...] = tuple(_native.DTYPES)


IDX = torch.arange(4 * 96).reshape(4, 96) ** 2 % 512
TARGETS = torch.arange(16) * 3001 % 50257
HEADS = {"q": (1, 2, 192, 64), "k": (1, 2, 192, 64), "v": (1, 2, 192, 64)}
DECODE = {"q": (1, 2, 1, 64), "k": (1, 2, 1024, 64), "v": (1, 2, 1024, 64)}
STEPS, LR, BETAS, EPS, DECAY = 3, 1e-3, (0.9, 0.95), 1e-8, 0.1


def sdpa(backend: SDPBackend) -> Callable[..., Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # float64 has the plain form only; one query sees every key
        with sdpa_kernel(SDPBackend.MATH if q.dtype == torch.float64 else backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)

    return run


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return ops.attention(q, k, v, causal=True)


def adamw(param: Tensor, grad: Tensor, masters: bool = False) -> Tensor:
    master = [param.float()] if masters else None
    param, m, v = param.clone(), torch.zeros(param.shape), torch.zeros(param.shape)
    for step in range(1, STEPS + 1):
        ops.adamw_([param], [grad], [m], [v], step=step, lr=LR, beta1=BETAS[0], beta2=BETAS[1], eps=EPS,
                   weight_decay=DECAY, masters=master)  # fmt: skip
    return param


def torchs_adamw(param: Tensor, grad: Tensor) -> Tensor:
    parameter = torch.nn.Parameter(param.clone())
    optimizer = torch.optim.AdamW([parameter], lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)
    for _ in range(STEPS):
        parameter.grad = grad
        optimizer.step()
    return parameter.detach()


CASES = (
    Case("attention", "SDPA, flash", HEADS, attention, sdpa(SDPBackend.FLASH_ATTENTION)),
    Case("attention", "SDPA, math", HEADS, attention, sdpa(SDPBackend.MATH)),
    Case("attention, one query", "SDPA, math", DECODE, attention, sdpa(SDPBackend.MATH)),
    Case("layernorm", "`F.layer_norm`", {"x": (64, 768), "weight": (768,), "bias": (768,)}, ops.layernorm,
         lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias)),
    Case("gelu, tanh", "`F.gelu`", {"x": (32, 3072)}, ops.gelu, lambda x: F.gelu(x, approximate="tanh")),
    Case("gelu, erf", "`F.gelu`", {"x": (32, 3072)}, lambda x: ops.gelu(x, approximate="none"), F.gelu),
    Case("bias_gelu, tanh", "`F.gelu(x + bias)`", {"x": (32, 3072), "bias": (3072,)}, ops.bias_gelu,
         lambda x, bias: F.gelu(x + bias, approximate="tanh")),
    Case("cross_entropy", "`F.cross_entropy`", {"logits": (16, 50257)}, lambda x: ops.cross_entropy(x, TARGETS),
         lambda x: F.cross_entropy(x, TARGETS)),
    Case("embedding", "`F.embedding`, twice", {"wte": (512, 768), "wpe": (96, 768)},
         lambda wte, wpe: ops.embedding(IDX, wte, wpe),
         lambda wte, wpe: F.embedding(IDX, wte) + F.embedding(torch.arange(96), wpe)),
    Case(f"adamw, {STEPS} steps", "`torch.optim.AdamW`", {"param": (20000,), "grad": (20000,)}, adamw, torchs_adamw,
         gradients=False),
    Case(f"adamw with fp32 masters, {STEPS} steps", "`torch.optim.AdamW`", {"param": (20000,), "grad": (20000,)},
         functools.partial(adamw, masters=True), torchs_adamw, gradients=False,
         dtypes=(torch.bfloat16, torch.float16)),
    Case("grad_norm", "`torch.linalg.vector_norm`", {"grad": (100000,)}, lambda g: ops.grad_norm([g]),
         torch.linalg.vector_norm, gradients=False),
)  # fmt: skip


def results(run: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor | None) -> list[Tensor]:
    """The output, and the gradients of all inputs where there is an upstream gradient."""
    if upstream is None:
        with torch.no_grad():
            return [run(*inputs)]
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = run(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream.to(y.dtype))]


def error(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).abs().max() / exact.abs().max())


def errors(case: Case, dtype: torch.dtype) -> tuple[list[float], list[float]]:
    """Errors of forward and (where there is one) backward: ours, torch's."""
    torch.manual_seed(0)
    inputs = [torch.randn(shape).to(dtype) for shape in case.shapes.values()]
    doubles = [x.double() for x in inputs]
    upstream = None
    if case.gradients:
        upstream = torch.randn(case.torchs(*doubles).shape).to(dtype).double()
    exact = results(case.torchs, doubles, upstream)
    both = []
    for run in (case.ours, case.torchs):
        each = [error(g, e) for g, e in zip(results(run, inputs, upstream), exact, strict=True)]
        both.append([each[0], max(each[1:])] if case.gradients else each)
    return both[0], both[1]


def rows() -> Iterator[tuple[str, ...]]:
    """Each case in each dtype, on the emulated backend."""
    for case in CASES:
        shapes = ", ".join(f"{n} {'x'.join(map(str, s))}" for n, s in case.shapes.items())
        for dtype in case.dtypes:
            ours, torchs = errors(case, dtype)
            cells = [f"{e:.1e}" for pair in zip(ours, torchs, strict=True) for e in pair]
            yield case.op, case.torch_op, shapes, DTYPE_NAMES[dtype], *cells, *["-"] * (4 - len(cells))


def main(args: Args) -> int:
    with running():
        header = ("op", "PyTorch's", "shapes", "dtype", "forward", "PyTorch", "backward", "PyTorch")
        table = markdown(header, rows(), text_columns=4)
    print(table)
    if args.write:
        write_between("errors", table)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
