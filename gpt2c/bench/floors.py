"""What this machine can do at best: the rates of torch's simplest passes over memory and of the best matrix product."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from gpt2c.bench.timing import CPU, interleaved
from gpt2c.ops.matmul import multiply

MEMORY_BYTES = 512 << 20  # more than any cache holds
CACHED_BYTES = tuple(1 << 20 << i for i in range(0, 7, 2))
PRODUCTS = ((256, 768, 2304), (1024, 768, 3072), (1024, 1024, 1024), (2048, 2048, 2048))  # (m, k) by (k, n)


@dataclass(frozen=True)
class Floors:
    """Bytes and operations a second.

    copy: into another tensor, bytes read and written (the processor may read the target's lines too, which is not
    counted); update: in place, bytes read and written; read: a sum, bytes read; gemm: the best of a few products,
    torch's and ours; cached: of updates in place of so many bytes, which stay in the caches.
    """

    copy: float
    update: float
    read: float
    gemm: float
    cached: dict[int, float] = field(default_factory=dict)

    def bandwidth(self, bytes: float) -> float:
        """The best rate of any pass over at least so many bytes."""
        return max([self.copy, self.update, self.read, *(r for size, r in self.cached.items() if size >= bytes)])

    def seconds(self, bytes: float, flops: float) -> float:
        """What no kernel that moves these bytes and does these operations can be faster than."""
        return max(bytes / self.bandwidth(bytes), flops / self.gemm)

    def rows(self) -> dict[str, str]:
        """As facts of the machine."""
        return {
            "memory, GB/s": f"copy {self.copy / 1e9:.1f}, in place {self.update / 1e9:.1f}, read {self.read / 1e9:.1f}",
            "matrix product": f"{self.gemm / 1e9:.0f} GFLOP/s",
        }


def measure_floors(
    device: torch.device = CPU, dtype: torch.dtype = torch.float32, cold: bool = False, quick: bool = False
) -> Floors:
    """Rates of the fastest tenth, since a floor is what can be had at best.

    cold: what is measured beside these has cold caches, so that only memory's rates count. quick: on so little memory
    that the numbers mean nothing.
    """
    repeats = 2 if quick else 10
    size = 1 << 20 if quick else MEMORY_BYTES
    a, b = (torch.ones(size // 2 // dtype.itemsize, dtype=dtype, device=device) for _ in range(2))
    passes = {"copy": lambda: b.copy_(a), "update": lambda: a.mul_(1), "read": a.sum}
    moved = {"copy": 2 * a.nbytes, "update": 2 * a.nbytes, "read": a.nbytes}
    times = interleaved(passes, repeats, device)
    rates = {name: moved[name] / times[name].low for name in passes}
    cached = {} if cold or quick or device.type == "cuda" else _cached(dtype, repeats)
    return Floors(**rates, gemm=_gemm(device, dtype, repeats, quick), cached=cached)


def _cached(dtype: torch.dtype, repeats: int) -> dict[int, float]:
    rates = {}
    for size in CACHED_BYTES:  # read and written, so of a tensor of half of it
        x = torch.ones(size // 2 // dtype.itemsize, dtype=dtype)
        rates[size] = size / interleaved({"update": lambda x=x: x.mul_(1)}, 3 * repeats)["update"].low
    return rates


def _gemm(device: torch.device, dtype: torch.dtype, repeats: int, quick: bool) -> float:
    sizes = ((64, 64, 64),) if quick else PRODUCTS if device.type == "cpu" else ((8192, 8192, 8192),)
    rates = []
    for m, k, n in sizes:
        a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((m, k), (k, n)))
        out = a.new_empty(m, n)
        sides = {
            "torch": lambda a=a, b=b, out=out: torch.mm(a, b, out=out),
            "gpt2c": lambda a=a, b=b, out=out: multiply(a, b, out),
        }
        rates += [2 * m * k * n / taken.low for taken in interleaved(sides, repeats, device).values()]
    return max(rates)
