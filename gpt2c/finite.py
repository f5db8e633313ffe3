"""Finding the tensor that made a loss or gradient infinite or NaN."""

from __future__ import annotations

import math

import torch

from gpt2c.model import GPT2


def non_finite_weight(model: GPT2) -> str | None:
    """The first weight that holds an infinity or a NaN, as words for a message; None if all are finite."""
    for name, p in model.named_parameters():
        if not bool(torch.isfinite(p).all()):
            return f"the weight {name}"
    return None


def non_finite_of_step(model: GPT2, loss: float, norm: float) -> str | None:
    """What is not finite after a backward pass, the first cause first; None if loss and gradient norm are finite."""
    if math.isfinite(loss) and math.isfinite(norm):
        return None
    if weight := non_finite_weight(model):
        return weight
    if not math.isfinite(loss):
        return f"the loss ({loss})"
    for name, p in model.named_parameters():
        if p.grad is not None and not bool(torch.isfinite(p.grad).all()):
            return f"the gradient of {name}"
    return f"the norm of all gradients together ({norm})"
