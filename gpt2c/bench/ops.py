"""Every op's cases at a model's sizes: the peers in torch, and the bytes and operations of csrc/kernels.h.

Operations are counted as a kernel does them, a multiply-add as two, exp and division as one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import gpt2c
from gpt2c import ops
from gpt2c.bench.case import BACKWARD, BOTH, FORWARD, OURS, Case, Function, Work, function_cases
from gpt2c.bench.timing import CPU, Call
from gpt2c.ops.linear_cross_entropy import CHUNK_ROWS

GPU_BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
LR, BETAS, CLIP = 6e-4, (0.9, 0.95), 1.0


@dataclass(frozen=True)
class Sizes:
    """A model's, and a batch of B windows of T tokens; the defaults are GPT-2 124M's."""

    B: int = 8
    T: int = 1024
    H: int = 12
    D: int = 64
    V: int = 50257
    L: int = 12

    @property
    def N(self) -> int:
        return self.B * self.T

    @property
    def C(self) -> int:
        return self.H * self.D

    def config(self) -> gpt2c.GPT2Config:
        return gpt2c.GPT2Config(self.V, max(self.T, 1024), self.C, self.L, self.H)


@dataclass(frozen=True)
class Setting:
    """What a case depends on."""

    sizes: Sizes
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    compiled: bool = False  # torch.compile is a peer too
    ways: tuple[str, ...] = (FORWARD, BACKWARD)

    def new(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)

    def ids(self, *shape: int) -> Tensor:
        return torch.randint(0, self.sizes.V, shape, device=self.device)

    def cases(
        self, op: str, label: str, ours: Function, peers: Function | dict[str, Function],
        inputs: Callable[[], list[Tensor]], forward: Work, backward: Work | None, plain: Function | None = None,
    ) -> list[Case]:  # fmt: skip
        """backward: None where the op has none of its own, because it is part of the forward."""
        sides = {OURS: ours, **(peers if isinstance(peers, dict) else {"torch": peers})}
        works = {FORWARD: forward, BACKWARD: backward, BOTH: forward + backward if backward else None}
        works = {way: works[way] for way in self.ways if works[way]}
        return function_cases(op, label, sides, inputs, works, plain, self.compiled)


def cases(setting: Setting, only: tuple[str, ...] = ()) -> list[Case]:
    """Those of every op, or of the named ones."""
    return [case for op in only or OPS for case in OPS[op](setting)]


def attention(setting: Setting) -> list[Case]:
    s, e = setting.sizes, setting.dtype.itemsize
    found = attention_of(setting, causal=True)
    if BACKWARD in setting.ways:
        found += attention_of(setting, causal=False) + attention_of_documents(setting)
    keys = s.B * s.H * s.T * s.D
    work = Work(2 * keys * e, 4 * keys)
    return found + setting.cases(
        "attention", f"B{s.B} H{s.H} Tq1 Tk{s.T} D{s.D}", ops.attention, _sdpa_peers(setting.device, False),
        lambda: [setting.new(s.B, s.H, T, s.D) for T in (1, s.T, s.T)], work, None, plain_attention,
    )  # fmt: skip


def attention_of(setting: Setting, causal: bool) -> list[Case]:
    s, e = setting.sizes, setting.dtype.itemsize
    pairs = s.B * s.H * (s.T * (s.T + 1) // 2 if causal else s.T**2)  # of a query and a key that it sees
    tensor, lse = s.N * s.C * e, 8 * s.B * s.H * s.T
    return setting.cases(
        "attention", f"B{s.B} H{s.H} T{s.T} D{s.D} {'causal' if causal else 'full'}",
        functools.partial(ops.attention, causal=causal), _sdpa_peers(setting.device, causal),
        lambda: [setting.new(s.B, s.H, s.T, s.D) for _ in range(3)],
        Work(4 * tensor + lse, 4 * s.D * pairs), Work(8 * tensor + lse, 10 * s.D * pairs),
        functools.partial(plain_attention, causal=causal),
    )  # fmt: skip


def attention_of_documents(setting: Setting) -> list[Case]:
    """Rows packed with documents of an eighth of their length; torch's own function gets the mask, made before."""
    s, e = setting.sizes, setting.dtype.itemsize
    length = math.ceil(s.T / 8)
    columns = torch.arange(s.T, device=setting.device)
    starts = (columns // length * length).expand(s.B, s.T).contiguous()
    seen = (columns <= columns[:, None]) & (columns >= starts[0, :, None])
    pairs, tensor, lse = s.B * s.H * int(seen.sum()), s.N * s.C * e, 8 * s.B * s.H * s.T
    return setting.cases(
        "attention", f"B{s.B} H{s.H} T{s.T} D{s.D} causal, documents of {length}",
        functools.partial(ops.attention, causal=True, starts=starts),
        functools.partial(F.scaled_dot_product_attention, attn_mask=seen),
        lambda: [setting.new(s.B, s.H, s.T, s.D) for _ in range(3)],
        Work(4 * tensor + lse, 4 * s.D * pairs), Work(8 * tensor + lse, 10 * s.D * pairs),
    )  # fmt: skip


def plain_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(D)) v with the whole (T, T) matrix."""
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    return scores.softmax(-1) @ v


def _sdpa_peers(device: torch.device, causal: bool) -> dict[str, Function]:
    def peer(backends: list[SDPBackend]) -> Function:
        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(backends):
                return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

        return run

    if device.type == "cpu":
        return {"torch": functools.partial(F.scaled_dot_product_attention, is_causal=causal)}
    return {f"SDPA {b.name.removesuffix('_ATTENTION').lower()}": peer([b]) for b in GPU_BACKENDS}


def matmul(setting: Setting) -> list[Case]:
    """The products of a layer: qkv, the two of the MLP, and the gradients of both operands of the MLP's first."""
    N, C, e = setting.sizes.N, setting.sizes.C, setting.dtype.itemsize
    found = []
    for K, M in ((C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)):
        moved, flops = (N * K + K * M + N * M) * e, 2 * N * K * M
        found += setting.cases(
            "matmul", f"{N} x {K} x {M}", ops.matmul, torch.mm, lambda K=K, M=M: [setting.new(N, K), setting.new(K, M)],
            Work(moved, flops), Work(2 * moved, 2 * flops),
        )  # fmt: skip
    return found


def layernorm(setting: Setting) -> list[Case]:
    (N, C), moved = (setting.sizes.N, setting.sizes.C), setting.sizes.N * setting.sizes.C * setting.dtype.itemsize
    return setting.cases(
        "layernorm", f"{N} x {C}", ops.layernorm, lambda x, weight, bias: F.layer_norm(x, (C,), weight, bias),
        lambda: [setting.new(N, C), setting.new(C), setting.new(C)],
        Work(2 * moved, 8 * N * C), Work(3 * moved, 15 * N * C),
    )  # fmt: skip


def residual_layernorm(setting: Setting) -> list[Case]:
    (N, C), moved = (setting.sizes.N, setting.sizes.C), setting.sizes.N * setting.sizes.C * setting.dtype.itemsize

    def torchs(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        h = x + residual
        return h, F.layer_norm(h, (C,), weight, bias)

    return setting.cases(
        "residual_layernorm", f"{N} x {C}", ops.residual_layernorm, torchs,
        lambda: [setting.new(N, C), setting.new(N, C), setting.new(C), setting.new(C)],
        Work(4 * moved, 9 * N * C), Work(4 * moved, 16 * N * C),
    )  # fmt: skip


def gelu(setting: Setting) -> list[Case]:
    N, C = setting.sizes.N, 4 * setting.sizes.C
    moved = N * C * setting.dtype.itemsize
    return setting.cases(
        "gelu", f"{N} x {C}", ops.gelu, functools.partial(F.gelu, approximate="tanh"), lambda: [setting.new(N, C)],
        Work(2 * moved, 10 * N * C), Work(3 * moved, 21 * N * C),
    )  # fmt: skip


def bias_gelu(setting: Setting) -> list[Case]:
    N, C = setting.sizes.N, 4 * setting.sizes.C
    moved = N * C * setting.dtype.itemsize
    return setting.cases(
        "bias_gelu", f"{N} x {C}", ops.bias_gelu, lambda x, bias: F.gelu(x + bias, approximate="tanh"),
        lambda: [setting.new(N, C), setting.new(C)], Work(2 * moved, 11 * N * C), Work(3 * moved, 22 * N * C),
    )  # fmt: skip


def cross_entropy(setting: Setting) -> list[Case]:
    N, V = min(setting.sizes.N, CHUNK_ROWS["cpu"]), setting.sizes.V  # a chunk, as linear_cross_entropy takes it
    moved = N * V * setting.dtype.itemsize
    return setting.cases(
        "cross_entropy", f"{N} x {V}", ops.cross_entropy, lambda x, targets: F.cross_entropy(x.float(), targets),
        lambda: [setting.new(N, V), setting.ids(N)], Work(moved, 4 * N * V), Work(2 * moved, 4 * N * V),
    )  # fmt: skip


def linear_cross_entropy(setting: Setting) -> list[Case]:
    (N, C, V), e = (setting.sizes.N, setting.sizes.C, setting.sizes.V), setting.dtype.itemsize
    work = Work((N + V) * C * e, 2 * N * C * V + 4 * N * V)
    # The gradients are made by the forward: a backward alone would be next to nothing.
    return dataclasses.replace(setting, ways=(FORWARD, BOTH)).cases(
        "linear_cross_entropy", f"{N} x {C} x {V}", ops.linear_cross_entropy,
        lambda x, weight, targets: F.cross_entropy((x @ weight.T).float(), targets),
        lambda: [setting.new(N, C), setting.new(V, C), setting.ids(N)],
        work, Work(work.bytes, 4 * N * C * V + 4 * N * V),
    )  # fmt: skip


def embedding(setting: Setting) -> list[Case]:
    s, e = setting.sizes, setting.dtype.itemsize
    rows, tables = s.N * s.C, (s.V + s.T) * s.C
    return setting.cases(
        "embedding", f"{s.B} x {s.T} x {s.C}", ops.embedding,
        lambda idx, wte, wpe: F.embedding(idx, wte) + wpe[: idx.shape[1]],
        lambda: [setting.ids(s.B, s.T), setting.new(s.V, s.C), setting.new(s.T, s.C)],
        Work((2 * rows + s.T * s.C) * e, rows), Work(rows * e + 4 * tables, 2 * rows),
    )  # fmt: skip


def _parameter_shapes(setting: Setting) -> list[torch.Size]:
    with torch.device("meta"):
        return [p.shape for p in gpt2c.GPT2(setting.sizes.config()).parameters()]


def adamw(setting: Setting) -> list[Case]:
    """The update alone, and after clipping, which ours does in the update's own pass."""
    shapes = _parameter_shapes(setting)
    count = sum(map(math.prod, shapes))

    def prepare(clip: bool) -> dict[str, Call]:
        params = [setting.new(*shape).requires_grad_() for shape in shapes]
        for p in params:
            p.grad = torch.randn_like(p)
        ours = gpt2c.AdamW(params, LR, BETAS)
        theirs = torch.optim.AdamW(params, LR, BETAS, fused=True)
        if not clip:
            return {OURS: ours.step, "torch": theirs.step}

        def clip_and_step() -> None:
            norm = ops.grad_norm([p.grad for p in params])
            ours.step(grad_scale=(CLIP / (norm + 1e-6)).clamp_max(1.0))

        def clip_and_step_torch() -> None:
            torch.nn.utils.clip_grad_norm_(params, CLIP)
            theirs.step()

        return {OURS: clip_and_step, "torch": clip_and_step_torch}

    e = setting.dtype.itemsize
    label = f"{count:,} parameters"
    update = Work((3 * e + 16) * count, 15 * count)
    return [
        Case("adamw", "update", label, lambda: prepare(clip=False), update),
        Case("adamw", "clip + update", label, lambda: prepare(clip=True), update + Work(e * count, 2 * count)),
    ]


def grad_norm(setting: Setting) -> list[Case]:
    shapes = _parameter_shapes(setting)
    count = sum(map(math.prod, shapes))

    def prepare() -> dict[str, Call]:
        grads = [setting.new(*shape) for shape in shapes]
        return {OURS: lambda: ops.grad_norm(grads), "torch": lambda: torch.nn.utils.get_total_norm(grads)}

    return [
        Case("grad_norm", FORWARD, f"{count:,} elements", prepare, Work(setting.dtype.itemsize * count, 2 * count))
    ]  # fmt: skip


OPS: dict[str, Callable[[Setting], list[Case]]] = {
    f.__name__: f
    for f in (matmul, attention, layernorm, residual_layernorm, gelu, bias_gelu, cross_entropy, linear_cross_entropy,
              embedding, adamw, grad_norm)
}  # fmt: skip
