"""The arithmetic of an optimizer step: its batches, its gradients, its learning rate."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gpt2c import ops
from gpt2c.data import Batch, Source
from gpt2c.model import GPT2
from gpt2c.optim import AdamW
from gpt2c.settings import TrainConfig

JUMP = 1.5  # what the learning rate may be multiplied by between two steps without a note


def learning_rate(step: int, config: TrainConfig) -> float:
    """The learning rate of a step, counted from 1: lr * step / warmup_steps up to warmup_steps, then half a cosine
    from lr to min_lr, which is reached at the last step."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    progress = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return config.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (config.lr - config.min_lr)


def tell_schedule(config: TrainConfig, before: TrainConfig | None, step: int) -> None:
    """A note where the learning rate is not what its flags suggest: a run that does not go beyond its warm-up, or that
    goes on after `step` steps with another number of steps than `before`, in which the cosine is another."""
    if before is None or before.steps == config.steps:
        if step == 0 and 0 < config.steps <= config.warmup_steps:
            last = learning_rate(config.steps, config)
            warnings.warn(
                f"the warm-up takes all steps (--warmup-steps {config.warmup_steps}, --steps {config.steps}): the "
                f"learning rate climbs to {last:.2g} at the last one, --lr is {config.lr:.2g}, and never falls; give a "
                "smaller --warmup-steps",
                stacklevel=2,
            )
    elif 0 < step < config.steps:
        was, now = learning_rate(step, before), learning_rate(step + 1, config)
        if not 1 / JUMP < now / max(was, 1e-30) < JUMP:
            warnings.warn(
                f"--steps is {config.steps}, before it was {before.steps}: the learning rate goes from {was:.2g} to "
                f"{now:.2g} at once, to that of a run of {config.steps} steps; to train on at a low rate, start "
                "another run from this one with --init",
                stacklevel=2,
            )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """The parameters that learn: weight decay on matrices and embeddings (two dimensions), none on biases and
    layernorms."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: GPT2, config: TrainConfig, shard: bool = False) -> torch.optim.Optimizer:
    """AdamW over parameter_groups; `shard`: each process keeps the moments of a part of the parameters, updates it and
    sends it to the others (Rajbhandari et al., "ZeRO", 2020, stage 1)."""
    settings = {"lr": config.lr, "betas": (config.beta1, config.beta2), "eps": 1e-8}
    groups = parameter_groups(model, config.weight_decay)
    if not shard:
        return AdamW(groups, weight_decay=config.weight_decay, **settings)
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return ZeroRedundancyOptimizer(groups, AdamW, weight_decay=config.weight_decay, **settings)


def micro_batches(dataset: Source, step: int, config: TrainConfig, rank: int = 0, world: int = 1) -> list[Batch]:
    """The batches of a step's micro-steps, or every world-th of them: a process's share."""
    return [
        dataset.train_batch(config.seed, step, i, config.accumulation, config.batch_size, config.context)
        for i in range(rank, config.accumulation, world)
    ]


def micro_weights(dataset: Source, step: int, config: TrainConfig, rank: int = 0, world: int = 1) -> list[float]:
    """What the mean loss of each batch of micro_batches counts, so that all targets of the step count the same: 1 where
    all micro-steps have as many."""
    learned = [
        dataset.learned(config.seed, step, i, config.accumulation, config.batch_size, config.context)
        for i in range(config.accumulation)
    ]
    return [count * config.accumulation / sum(learned) for count in learned[rank::world]]


def dropout_seeds(config: TrainConfig, step: int, rank: int = 0, world: int = 1) -> list[int] | None:
    """What torch's generator is seeded with before each micro-step of micro_batches, None without dropout. A function
    of the step, so that neither a stop nor the number of processes changes what is dropped."""
    if not config.dropout:
        return None
    words = np.random.Philox(key=config.seed, counter=[1, step, 0, 0]).random_raw(config.accumulation)
    return [int(word >> np.uint64(1)) for word in words[rank::world]]


def accumulate_gradients(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    seeds: Sequence[int] | None = None,
    scale: float = 1.0,
    weights: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Leave in .grad `scale` times the gradient of the mean over all batches of their losses; returns that mean and the
    L2 norm of its gradient, 0-dim tensors.

    model: a GPT2, or one wrapped in DistributedDataParallel, whose processes average once, in the last backward;
        either perhaps compiled.
    seeds: of torch's generator before each batch.
    weights: what each batch's loss is multiplied by, 1 if not given.
    """
    optimizer.zero_grad()
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float32, device=device)
    for i, batch in enumerate(batches):
        weight = 1.0 if weights is None else weights[i]
        if seeds is not None:
            torch.manual_seed(seeds[i])
        apart = i + 1 < len(batches) and hasattr(model, "no_sync")  # compiled or not
        with model.no_sync() if apart else contextlib.nullcontext():
            _, loss = model(*(part.to(device, non_blocking=True) for part in batch))
            (loss * (scale * weight) / len(batches)).backward()
        total += loss.detach() * weight / len(batches)
    norm = ops.grad_norm([p.grad for p in model.parameters() if p.grad is not None])
    return total, norm / scale


def clip_coefficient(norm: float, grad_clip: float) -> float:
    """What gradients of this norm are multiplied by, so that it is at most grad_clip."""
    return min(1.0, grad_clip / (norm + 1e-6))


def tokens_per_step(config: TrainConfig) -> int:
    return config.accumulation * config.batch_size * config.context
