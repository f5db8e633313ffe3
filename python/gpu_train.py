"""A training step of GPT-2 beside the same model in plain PyTorch (gpt2c/bench/twin.py), for python/gpu_check.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import gpt2c
from gpt2c.bench.case import COMPILED, OURS, Case, Work
from gpt2c.bench.timing import Call
from gpt2c.bench.twin import Twin

LR, BETAS, CLIP = 6e-4, (0.9, 0.95), 1.0


def training_step(config: gpt2c.GPT2Config, B: int, device: torch.device, dtype: torch.dtype, compiled: bool) -> Case:
    """Forward, backward, clipping and AdamW on one batch of B windows, all parameters in `dtype`, on each side; as
    work 6 operations for each parameter and token."""
    with torch.device("meta"):
        parameters = gpt2c.GPT2(config).num_parameters()

    def prepare() -> dict[str, Call]:
        torch.manual_seed(0)
        model = gpt2c.GPT2(config)
        idx = torch.randint(0, config.vocab_size, (B, config.n_positions + 1), device=device)
        batch = idx[:, :-1].contiguous(), idx[:, 1:].contiguous()
        twins: dict[str, nn.Module] = {"torch": Twin.of(model).to(device, dtype)}
        if compiled:
            twins[COMPILED] = torch.compile(Twin.of(model).to(device, dtype))
        run = {OURS: gpt2c_step(model.to(device, dtype), *batch)}
        return run | {name: torch_step(twin, *batch) for name, twin in twins.items()}

    flops = 6.0 * parameters * B * config.n_positions
    return Case("training", "step", str(dtype).removeprefix("torch."), prepare, Work(bytes=0.0, flops=flops))


def gpt2c_step(model: gpt2c.GPT2, idx: Tensor, targets: Tensor) -> Callable[[], object]:
    optimizer = gpt2c.AdamW(model.parameters(), lr=LR, betas=BETAS)

    def step() -> None:
        optimizer.zero_grad()
        model(idx, targets)[1].backward()
        norm = gpt2c.ops.grad_norm([p.grad for p in model.parameters()])
        optimizer.step(grad_scale=(CLIP / (norm + 1e-6)).clamp_max(1.0))

    return step


def torch_step(model: nn.Module, idx: Tensor, targets: Tensor) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        model(idx, targets)[1].backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    return step
