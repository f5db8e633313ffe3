"""Floating-point operations: what a token takes to train, and what a machine can do in a second."""

from __future__ import annotations

import time

import torch

from gpt2c.config import GPT2Config
from gpt2c.ops.matmul import multiply

# Dense matrix products in bf16 or fp16 with fp32 sums, and in fp32 without TF32, FLOP/s: NVIDIA's data sheets.
GPUS = {
    "T4": (65e12, 8.1e12),
    "L4": (121e12, 30.3e12),
    "A10G": (70e12, 31.5e12),
    "A100": (312e12, 19.5e12),
    "H100 PCIe": (756e12, 51e12),
    "H100": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "B200": (2250e12, 75e12),
    "RTX 3070": (40.6e12, 20.3e12),
    "RTX 3090": (71e12, 35.6e12),
    "RTX 4090": (165.2e12, 82.6e12),
    "RTX 5090": (209.5e12, 104.8e12),
}


def flops_per_token(sizes: GPT2Config, context: int) -> float:
    """6 N + 6 L C T operations to train on a token: two in the forward and four in the backward for each parameter,
    and the causal half of attention's 12 L C T (Chowdhery et al., "PaLM", 2022, appendix B)."""
    return 6.0 * sizes.num_parameters() + 6.0 * sizes.n_layer * sizes.n_embd * context


def peak_flops(device: torch.device, precision: str) -> float | None:
    """What the device can do at best: a GPU's from its data sheet, None for one that is not listed; a CPU's measured,
    as the best of a few products of 1024 x 1024 matrices, 50 ms."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        found = max((gpu for gpu in GPUS if gpu in name), key=len, default=None)
        return None if found is None else GPUS[found][precision == "fp32"]
    a, b, out = (torch.ones(1024, 1024) for _ in range(3))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        multiply(a, b, out)
        times.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(times)
