"""A whole training step of GPT-2 beside the same model in plain PyTorch (tests/twin.py), for python/gpu_check.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_bench import Case, Measured, measure
from torch import Tensor, nn

import gpt2c

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from twin import Twin  # noqa: E402

LR, BETAS, CLIP = 6e-4, (0.9, 0.95), 1.0


def training_step(
    config: gpt2c.GPT2Config, B: int, device: torch.device, dtype: torch.dtype, peak: tuple[float, float],
    compiled: bool, repeats: int,
) -> Measured:  # fmt: skip
    """Forward, backward, clipping and AdamW on one batch of B windows, all parameters in `dtype`, on each side; as
    floor 6 operations for each parameter and token, at the speed of torch's matrix product."""
    torch.manual_seed(0)
    model = gpt2c.GPT2(config)
    idx = torch.randint(0, config.vocab_size, (B, config.n_positions + 1), device=device)
    batch = idx[:, :-1].contiguous(), idx[:, 1:].contiguous()
    twins: dict[str, nn.Module] = {"torch": Twin.of(model).to(device, dtype)}
    if compiled:
        twins["torch.compile"] = torch.compile(Twin.of(model).to(device, dtype))
    run = {"gpt2c": gpt2c_step(model.to(device, dtype), *batch)}
    run |= {name: torch_step(twin, *batch) for name, twin in twins.items()}
    flops = 6.0 * model.num_parameters() * batch[0].numel()
    case = Case("training", str(dtype).removeprefix("torch."), run, bytes=0.0, flops=flops)
    return measure(case, device, peak, repeats)


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
