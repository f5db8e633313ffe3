"""Long curves in few points: the mean, the least and the greatest value of each piece."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_PIECES = 1500
RECENT = 0.02  # share of a run that its latest loss is the mean of
Pairs = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Pieces:
    """A curve in pieces of as many steps each: x is a piece's middle, mean that of the values last taken at its steps,
    least and greatest those of all its values."""

    x: list[float]
    mean: list[float]
    least: list[float]
    greatest: list[float]


def pieces(pairs: Pairs, most: int = MOST_PIECES) -> Pieces:
    """At most `most` pieces, each of a single step if there are so few. Values that are not finite are left out, and
    steps are in ascending order, also where a rollback took some of them twice."""
    values: dict[int, list[float]] = {}
    for step, value in pairs:
        if math.isfinite(value):
            values.setdefault(step, []).append(value)
    steps = sorted(values)
    size = max(1, math.ceil(len(steps) / most))
    found = Pieces([], [], [], [])
    for start in range(0, len(steps), size):
        piece = steps[start : start + size]
        everything = [value for step in piece for value in values[step]]
        found.x.append((piece[0] + piece[-1]) / 2)
        found.mean.append(sum(values[step][-1] for step in piece) / len(piece))
        found.least.append(min(everything))
        found.greatest.append(max(everything))
    return found


def recent(pairs: Pairs) -> float | None:
    """The mean of the last finite values, RECENT of them; None if there are none."""
    values = [value for _, value in pairs if math.isfinite(value)]
    last = values[-max(1, round(RECENT * len(values))) :]
    return sum(last) / len(last) if last else None
