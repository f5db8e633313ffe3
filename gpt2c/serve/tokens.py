"""A token that a model wrote, and what it could have written instead."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BINS = 48  # of the histogram of all tokens that are not named; at temperature 1 it is exact, at others nearly


@dataclass(frozen=True)
class Rest:
    """All tokens but those named, by their log probabilities: counts of equal bins from `low` to `high`."""

    low: float
    high: float
    counts: list[int]


@dataclass(frozen=True)
class Token:
    """logprob: the logarithm of its probability at temperature 1, whatever it was drawn with; None if not asked for.

    top: the likeliest ids and their log probabilities, the likeliest first. rest: the others, if asked for.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    rest: Rest | None = None


@dataclass(frozen=True)
class Wanted:
    """What a Token tells: nothing but its id without one of these. top: how many of the likeliest ids."""

    top: int = 0
    rest: bool = False


def token(id: int, logits: Tensor, wanted: Wanted | None) -> Token:
    """The Token `id` that was drawn from logits (V,) fp32."""
    if wanted is None:
        return Token(id)
    logprobs = logits - logits.logsumexp(0)
    count = min(wanted.top, len(logits))
    values, ids = logprobs.topk(count)
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Token(id, float(logprobs[id]), top, rest_of(logprobs, ids) if wanted.rest and count < len(logits) else None)


def rest_of(logprobs: Tensor, named: Tensor) -> Rest:
    """The histogram of logprobs (V,) without those of the ids `named`."""
    others = torch.ones_like(logprobs, dtype=torch.bool)
    others[named] = False
    values = logprobs[others]
    low, high = (float(end) for end in values.aminmax())
    high = max(high, low + 1e-3)  # equal ones, too, need a bin
    return Rest(low, high, torch.histc(values, BINS, low, high).int().tolist())
