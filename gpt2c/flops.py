"""Floating-point operations: what a token takes to train, and what a machine can do in a second."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

from gpt2c.bench.machine import ProcessorTime
from gpt2c.config import GPT2Config
from gpt2c.ops.matmul import multiply

TRIES = 5  # of a CPU's peak, until nothing else runs
MOST_BUSY = 0.5  # cores that others may keep busy meanwhile


@dataclass(frozen=True)
class Gpu:
    """NVIDIA's data sheets: dense matrix products a second in 16 bits with fp32 sums and in fp32 without TF32, FLOP/s;
    memory in bytes."""

    flops_16: float
    flops_32: float
    memory: float


GPUS = {
    "T4": Gpu(65e12, 8.1e12, 16e9),
    "L4": Gpu(121e12, 30.3e12, 24e9),
    "A10G": Gpu(70e12, 31.5e12, 24e9),
    "A100": Gpu(312e12, 19.5e12, 40e9),
    "A100 80GB": Gpu(312e12, 19.5e12, 80e9),
    "H100 PCIe": Gpu(756e12, 51e12, 80e9),
    "H100": Gpu(989e12, 67e12, 80e9),
    "H200": Gpu(989e12, 67e12, 141e9),
    "B200": Gpu(2250e12, 75e12, 180e9),
    "RTX 3060": Gpu(25.4e12, 12.7e12, 12e9),
    "RTX 3070": Gpu(40.6e12, 20.3e12, 8e9),
    "RTX 3080": Gpu(59.5e12, 29.8e12, 10e9),
    "RTX 3090": Gpu(71e12, 35.6e12, 24e9),
    "RTX 4070": Gpu(58.3e12, 29.1e12, 12e9),
    "RTX 4090": Gpu(165.2e12, 82.6e12, 24e9),
    "RTX 5090": Gpu(209.5e12, 104.8e12, 32e9),
}


def flops_per_token(sizes: GPT2Config, context: int) -> float:
    """6 N + 6 L C T operations to train on a token: two in the forward and four in the backward for each parameter,
    and the causal half of attention's 12 L C T (Chowdhery et al., "PaLM", 2022, appendix B)."""
    return 6.0 * sizes.num_parameters() + 6.0 * sizes.n_layer * sizes.n_embd * context


def peak_flops(device: torch.device, precision: str, world: int = 1) -> float | None:
    """What the devices of `world` processes can do at best: a GPU's from its data sheet, None for one that is not
    listed; a CPU's measured, None where other processes keep it busy.

    Of several processes on a CPU each measures its share while the others do, so that strangers are not noticed.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        found = max((gpu for gpu in GPUS if gpu in name), key=len, default=None)
        return (
            None if found is None else world * (GPUS[found].flops_32 if precision == "fp32" else GPUS[found].flops_16)
        )
    for _ in range(TRIES):
        before = ProcessorTime.now()
        rate = product_rate()
        after = ProcessorTime.now()
        if world > 1 or before is None or after is None:  # or where the system does not tell
            return world * rate
        if after.others_since(before) * (os.cpu_count() or 1) <= MOST_BUSY:
            return rate
    return None


def product_rate() -> float:
    """Operations a second of a CPU: the best of eight products of 1024 x 1024 matrices, 50 to 100 ms."""
    a, b, out = (torch.ones(1024, 1024, dtype=torch.float32, device="cpu") for _ in range(3))
    times = []
    for _ in range(8):
        start = time.perf_counter()
        multiply(a, b, out)
        times.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(times)
