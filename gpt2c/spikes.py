"""Steps whose loss or gradient norm is out of line: their update is skipped, and after some in a row the run goes back.

A value is out of line if it is not finite, or lies more than `limit` standard deviations above the mean of the latest
values (as llm.c's `outlier_detector`: a window of 128, silent until it is full).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

WINDOW = 128


class SpikeGuard:
    """limit: z-score, 0 for finite values only. `in_a_row` counts the latest skips; `offset` is by how many steps the
    data are ahead of the steps, since those that training went back from are not seen again."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.in_a_row = 0
        self.offset = 0
        self._latest = {"loss": deque[float](maxlen=WINDOW), "gradient norm": deque[float](maxlen=WINDOW)}

    def judge(self, loss: float, norm: float) -> str | None:
        """Why the update must be skipped, as words for the log, or None; of values that are in line it takes note."""
        found = {"loss": loss, "gradient norm": norm}
        for name, value in found.items():
            if problem := self._problem(name, value):
                self.in_a_row += 1
                return problem
        for name, value in found.items():
            self._latest[name].append(value)
        self.in_a_row = 0
        return None

    def _problem(self, name: str, value: float) -> str | None:
        if not math.isfinite(value):
            return f"the {name} is {value}"
        latest = self._latest[name]
        if not self.limit or len(latest) < WINDOW:
            return None
        mean, deviation = statistics.fmean(latest), statistics.pstdev(latest)
        z = (value - mean) / deviation if deviation else 0.0
        if z <= self.limit:
            return None
        return (
            f"the {name} is {value:.4g}, {z:.1f} standard deviations above {mean:.4g}, the latest {WINDOW} steps' mean"
        )

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to judge as if it had never stopped, for JSON."""
        latest = {name: list(values) for name, values in self._latest.items()}
        return {"in_a_row": self.in_a_row, "offset": self.offset, "latest": latest if self.limit else {}}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave; raises KeyError or TypeError for anything else."""
        self.in_a_row, self.offset = int(state["in_a_row"]), int(state["offset"])
        for name, values in state["latest"].items():
            self._latest[name] = deque(map(float, values), maxlen=WINDOW)
