"""Stopping between two steps when the user, or the machine, asks for it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# A terminal's Ctrl-C comes twice to what torchrun has started: from the terminal, and from torchrun.
ECHO = 0.5  # seconds


class StopSignal:
    """`received`: the first SIGINT or SIGTERM that came, or None. A later one raises KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._at = 0.0

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler for both signals."""
        if self.received is not None and time.monotonic() - self._at > ECHO:
            raise KeyboardInterrupt
        if self.received is not None:
            return
        self.received, self._at = number, time.monotonic()
        # Not print: the signal may have come in the middle of one.
        with contextlib.suppress(OSError):  # of a terminal that has closed
            os.write(2, b"\nstopping after this step, with a checkpoint; once more to stop at once\n")


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Catches SIGINT and SIGTERM inside the block; outside the main thread, where Python cannot, it catches nothing."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
