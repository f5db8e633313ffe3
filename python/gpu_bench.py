"""Each op beside PyTorch's: the harness of python/gpu_check.py and the cases that it measures."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import gpt2c
from gpt2c import ops

Function = Callable[..., Tensor | tuple[Tensor, ...]]
L2_FLUSH_BYTES = 256 << 20  # more than any GPU's L2
HEAD_START = 2_000_000  # clock cycles that the GPU is kept busy, so that Python is ahead of it: about 1 ms


@dataclass(frozen=True)
class Sizes:
    """GPT-2 124M's, a batch of B windows of T tokens."""

    B: int = 8
    T: int = 1024
    H: int = 12
    D: int = 64
    V: int = 50257

    @property
    def N(self) -> int:
        return self.B * self.T

    @property
    def C(self) -> int:
        return self.H * self.D


@dataclass
class Case:
    """One measurement: an op, forward or backward, in one dtype; the bytes and operations that any kernel needs."""

    op: str
    name: str
    run: dict[str, Callable[[], object]]  # "gpt2c" and its peers
    bytes: float
    flops: float = 0.0


@dataclass
class Measured:
    """A case's median seconds, ours and the peers'; its floor; and the peers that could not run, with the reason."""

    op: str
    name: str
    seconds: dict[str, float]
    floor: float
    unavailable: dict[str, str] = field(default_factory=dict)

    @property
    def speedup(self) -> float | None:
        """The fastest peer's time over ours."""
        peers = [s for name, s in self.seconds.items() if name != "gpt2c"]
        return min(peers) / self.seconds["gpt2c"] if peers else None

    @property
    def of_floor(self) -> float:
        return self.floor / self.seconds["gpt2c"]


def median_seconds(run: dict[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, float]:
    """Each function's median, all of them in turns, each call with cold caches. On a GPU the device's own time."""
    once = _gpu_seconds if device.type == "cuda" else _cpu_seconds
    times: dict[str, list[float]] = {name: [] for name in run}
    for i in range(repeats + 2):
        for name, function in run.items():
            seconds = once(function, device)
            if i >= 2:  # the first two warm up
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def _cpu_seconds(function: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _gpu_seconds(function: Callable[[], object], device: torch.device) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _flush_buffer(device).zero_()
    torch.cuda._sleep(HEAD_START)
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


@functools.cache
def _flush_buffer(device: torch.device) -> Tensor:
    return torch.empty(L2_FLUSH_BYTES, dtype=torch.uint8, device=device)


def peaks(device: torch.device, dtype: torch.dtype, size: int = 8192) -> tuple[float, float]:
    """Bytes a second of torch's copy and operations a second of its matrix product: what this machine can do."""
    a = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty_like(a)
    seconds = median_seconds({"copy": lambda: out.copy_(a), "mm": lambda: torch.mm(a, a, out=out)}, device, 10)
    return 2 * a.nbytes / seconds["copy"], 2 * size**3 / seconds["mm"]


def measure(case: Case, device: torch.device, peak: tuple[float, float], repeats: int) -> Measured:
    """Drops the peers that cannot run here; an error of ours is an error."""
    unavailable = {}
    for name, function in case.run.items():
        try:
            function()
        except Exception as error:  # whatever a peer's library raises
            if name == "gpt2c":
                raise
            unavailable[name] = str(error).splitlines()[0] if str(error) else type(error).__name__
    run = {name: function for name, function in case.run.items() if name not in unavailable}
    floor = max(case.bytes / peak[0], case.flops / peak[1])
    return Measured(case.op, case.name, median_seconds(run, device, repeats), floor, unavailable)


def both_ways(
    op: str, label: str, functions: dict[str, Function], inputs: list[Tensor], bytes: tuple[float, float],
    flops: tuple[float, float] = (0.0, 0.0),
) -> Iterator[Case]:  # fmt: skip
    """The forward without a graph, and the backward alone, of functions of the same inputs."""

    def forward(function: Function) -> Callable[[], object]:
        @torch.no_grad()
        def run() -> object:
            return function(*inputs)

        return run

    def backward(function: Function) -> Callable[[], object]:
        @functools.cache
        def graph() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
            given = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
            outputs = function(*given)
            outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
            return outputs, [t for t in given if t.requires_grad], [torch.randn_like(o) for o in outputs]

        return lambda: torch.autograd.grad(graph()[0], graph()[1], graph()[2], retain_graph=True)

    for name, way, i in (("forward", forward, 0), ("backward", backward, 1)):
        yield Case(op, f"{name}, {label}", {n: way(f) for n, f in functions.items()}, bytes[i], flops[i])


def cases(device: torch.device, dtype: torch.dtype, sizes: Sizes, compiled: bool) -> Iterator[Case]:
    """Every op in `dtype`; `compiled`: torch.compile's versions are peers too."""
    label = str(dtype).removeprefix("torch.")
    e, (N, C) = dtype.itemsize, (sizes.N, sizes.C)

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    def peers(ours: Function, torchs: Function) -> dict[str, Function]:
        extra = {"torch.compile": torch.compile(torchs)} if compiled else {}
        return {"gpt2c": ours, "torch": torchs} | extra

    yield from attention_cases(new, label, e, sizes)

    x, h, weight, bias = new(N, C), new(N, C), new(C), new(C)
    run = peers(ops.layernorm, lambda x, w, b: F.layer_norm(x, (C,), w, b))
    yield from both_ways("layernorm", label, run, [x, weight, bias], (2 * N * C * e, 3 * N * C * e))
    run = peers(ops.residual_layernorm, lambda x, h, w, b: (x + h, F.layer_norm(x + h, (C,), w, b)))
    yield from both_ways("residual_layernorm", label, run, [x, h, weight, bias], (4 * N * C * e, 4 * N * C * e))
    run = peers(ops.bias_gelu, lambda x, b: F.gelu(x + b, approximate="tanh"))
    wide = 4 * N * C * e
    yield from both_ways("bias_gelu", label, run, [new(N, 4 * C), new(4 * C)], (2 * wide, 3 * wide))

    rows = max(1, N // 8)  # a chunk, as linear_cross_entropy takes it
    targets = torch.randint(0, sizes.V, (rows,), device=device)
    run = peers(ops.cross_entropy, lambda x, t: F.cross_entropy(x.float(), t))
    logits = rows * sizes.V * e
    yield from both_ways("cross_entropy", label, run, [new(rows, sizes.V), targets], (logits, 2 * logits))

    idx = torch.randint(0, sizes.V, (sizes.B, sizes.T), device=device)
    run = peers(ops.embedding, lambda i, wte, wpe: F.embedding(i, wte) + wpe[: i.shape[1]])
    tables = (sizes.V + sizes.T) * C * e
    moved = (2 * N * C + sizes.T * C) * e, N * C * e + tables
    yield from both_ways("embedding", label, run, [idx, new(sizes.V, C), new(sizes.T, C)], moved)

    yield from optimizer_cases(new, label, e, sizes)


def attention_cases(new: Callable[..., Tensor], label: str, e: int, sizes: Sizes) -> Iterator[Case]:
    def sdpa(backend: SDPBackend) -> Function:
        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        return run

    backends = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
    run: dict[str, Function] = {"gpt2c": functools.partial(ops.attention, causal=True)}
    run |= {f"SDPA {b.name.removesuffix('_ATTENTION').lower()}": sdpa(b) for b in backends}
    shape = (sizes.B, sizes.H, sizes.T, sizes.D)
    q, k, v = (new(*shape) for _ in range(3))
    flops = 2.0 * sizes.B * sizes.H * sizes.T**2 * sizes.D  # two products of half a square; the backward has five
    bytes = 4 * q.numel() * e, 8 * q.numel() * e
    yield from both_ways("attention", label, run, [q, k, v], bytes, (flops, 2.5 * flops))
    one = q[:, :, -1:]
    run = {"gpt2c": lambda q, k, v: ops.attention(q, k, v), "torch": F.scaled_dot_product_attention}
    yield next(both_ways("attention", f"{label}, one query", run, [one, k, v], (2 * k.numel() * e, 0)))


def optimizer_cases(new: Callable[..., Tensor], label: str, e: int, sizes: Sizes) -> Iterator[Case]:
    shapes = [(sizes.C, 4 * sizes.C)] * 24 + [(sizes.C,)] * 24

    def step_of(optimizer: Callable[..., torch.optim.Optimizer]) -> Callable[[], object]:
        params = [new(*shape).requires_grad_() for shape in shapes]
        for p in params:
            p.grad = torch.randn_like(p)
        return optimizer(params, lr=1e-4).step

    count = sum(sizes.C * shape[-1] if len(shape) == 2 else shape[0] for shape in shapes)
    run = {"gpt2c": step_of(gpt2c.AdamW), "torch fused": step_of(functools.partial(torch.optim.AdamW, fused=True))}
    # torch keeps moments in the parameter's dtype: with 16 bits it has fewer bytes to move.
    yield Case("adamw", f"step, {label}", run, count * (3 * e + 16))
    grads = [new(*shape) for shape in shapes]
    run = {"gpt2c": lambda: ops.grad_norm(grads), "torch": lambda: torch.nn.utils.get_total_norm(grads)}
    yield Case("grad_norm", f"norm, {label}", run, count * e)
