"""How the tokens of a text are drawn: settings of gpt2c.generate.stream, which checks them, and flags of commands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float = 1.0
    """Divides the logits: below 1 more likely, above 1 more surprising text; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens can come."""
    top_p: float | None = None
    """Only the likeliest tokens whose probabilities sum to this, above 0 and at most 1, can come."""
    seed: int | None = None
    """The same seed gives the same text; without one each differs. Text i of several has the seed + i, from 0."""


GREEDY = Sampling(temperature=0.0)
