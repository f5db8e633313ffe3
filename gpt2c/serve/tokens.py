"""A token that a model wrote, and what it could have written instead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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
    """logprob: the logarithm of its probability at temperature 1, whatever it was drawn with; None if it does not tell.

    top: the likeliest ids and their log probabilities, the likeliest first. rest: the others, if asked for.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    rest: Rest | None = None


@dataclass(frozen=True)
class Wanted:
    """What a Token tells besides its id and logprob. top: how many of the likeliest ids, at least one for the rest.

    pause: seconds from one token of a text that tells it to the next: those in between have their id alone.
    """

    top: int = 0
    rest: bool = False
    pause: float = 0.0


def token(id: int, logits: Tensor, wanted: Wanted | None) -> Token:
    """The Token `id` that was drawn from logits (V,) fp32."""
    if wanted is None:
        return Token(id)
    logprobs = logits - logits.logsumexp(0)
    values, ids = logprobs.topk(min(wanted.top, len(logits)))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    rest = rest_of(logprobs, values) if wanted.rest and len(top) < len(logits) else None
    return Token(id, float(logprobs[id]), top, rest)


def rest_of(logprobs: Tensor, named: Tensor) -> Rest:
    """The histogram of logprobs (V,) without the likeliest, whose logprobs are `named`, at least one.

    With numpy's bincount it takes 0.2 ms of GPT-2's vocabulary; torch's histc of a selection takes 1.2.
    """
    values, low, high = logprobs.numpy(), float(logprobs.min()), float(named[-1])
    high = max(high, low + 1e-3)  # equal ones, too, need a bin
    bins = ((values - low) * (BINS / (high - low))).astype(np.int32)
    counts = np.bincount(np.minimum(bins, BINS), minlength=BINS + 1)[:BINS]
    # As likely as the last of those named: rounding alone decides whether they are in a bin.
    counts[-1] += len(values) - len(named) - counts.sum()
    return Rest(low, high, counts.tolist())
