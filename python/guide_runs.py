"""Small training runs that go wrong in one way each, for chapter 6 of the guide: seconds each on one core."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

import gpt2c
from gpt2c import ops
from gpt2c.data import Dataset, load_dataset
from gpt2c.settings import TrainConfig
from gpt2c.step import clip_coefficient, learning_rate, make_optimizer
from gpt2c.tokenizer import get_tokenizer

SETTINGS = TrainConfig(
    n_layer=2, n_head=4, n_embd=64, context=64, batch_size=8, steps=200, lr=2e-3, min_lr=2e-4, warmup_steps=40, seed=1
)


@dataclass(frozen=True)
class SmallRun:
    """A GPT-2 of 0.1 million parameters on the text that every Python carries, byte by byte.

    init_scale: what all initial weights are multiplied by. zero_gradients: whether they are, before each step.
    shift: how many tokens the targets are ahead of the inputs, 1 or 0.
    """

    settings: TrainConfig = SETTINGS
    init_scale: float = 1.0
    zero_gradients: bool = True
    shift: int = 1


def changed(**settings: float) -> SmallRun:
    return SmallRun(replace(SETTINGS, **settings))


# The first is right.
RUNS = {
    "as it should be": SmallRun(),
    "learning rate too low": changed(lr=1e-4, min_lr=1e-5),
    "learning rate too high": changed(lr=1e-1, min_lr=1e-2),
    "high rate, no warm-up, no clipping": changed(lr=2e-2, min_lr=2e-3, warmup_steps=0, grad_clip=1e9),
    "initial weights 20 times too large": SmallRun(init_scale=20.0),
    "gradients never zeroed": SmallRun(zero_gradients=False),
    "targets not shifted": SmallRun(shift=0),
}


def small_data() -> Dataset:
    return load_dataset("embedded", get_tokenizer("bytes"), SETTINGS.val_fraction, SETTINGS.context)


def losses(run: SmallRun) -> list[float]:
    """The loss of each step, before its update."""
    settings, data = run.settings, small_data()
    torch.manual_seed(settings.seed)
    model = gpt2c.GPT2(settings.model_config(257))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(run.init_scale)
    optimizer = make_optimizer(model, settings)
    found = []
    for step in range(1, settings.steps + 1):
        idx, targets = data.train_batch(settings.seed, step, 0, 1, settings.batch_size, settings.context)
        if run.zero_gradients:
            optimizer.zero_grad()
        _, loss = model(idx, targets if run.shift else idx)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        norm = float(ops.grad_norm([p.grad for p in model.parameters()]))
        optimizer.step(grad_scale=clip_coefficient(norm, settings.grad_clip))
        found.append(loss.item())
    return found
