"""Telling, once, that other processes take the processors that training computes on."""

from __future__ import annotations

import os
import time

from gpt2c.bench.machine import ProcessorTime

WINDOW = 10.0  # seconds that are looked at
MOST = 0.5  # cores that others may keep busy unmentioned: a desktop's own work


class Neighbours:
    """What other processes take of this machine, looked at every WINDOW seconds until it was worth a note."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._before = ProcessorTime.now()  # None where the system does not tell

    def note(self) -> str | None:
        """A sentence on the window that has just ended, if others kept more than MOST cores busy in it."""
        if self._before is None or time.monotonic() - self._since < WINDOW:
            return None
        before, now = self._before, ProcessorTime.now()
        self._since, self._before = time.monotonic(), now
        cores = os.cpu_count() or 1
        taken = now.others_since(before) * cores if now is not None else 0.0
        if taken <= MOST:
            return None
        self._before = None
        return f"the machine is busy: other processes take {taken:.1f} of its {cores} cores, which slows each step down"
