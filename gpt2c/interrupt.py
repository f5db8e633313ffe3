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
STOPS = (signal.SIGINT, signal.SIGTERM)
# Of a terminal that closes, and of schedulers before they kill. They come again while the step ends, SIGXCPU each
# second, so that a second one means nothing.
WARNINGS = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name))


class StopSignal:
    """`received`: the first of STOPS and WARNINGS that came, or None. One of STOPS after another raises
    KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._asked_at: float | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The handler for all."""
        if number in STOPS:
            now = time.monotonic()
            if self._asked_at is not None and now - self._asked_at > ECHO:
                raise KeyboardInterrupt
            if self._asked_at is None:
                self._asked_at = now
        if self.received is not None:
            return
        self.received = number
        with contextlib.suppress(OSError):  # of a terminal that has closed
            # Not print: the signal may have come in the middle of one.
            os.write(2, b"\nstopping after this step, with a checkpoint; once more to stop at once\n")


@contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Catches STOPS and WARNINGS inside the block, but those that the process was started to ignore, as `nohup` does;
    outside the main thread, where Python cannot, it catches nothing."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (*STOPS, *WARNINGS)}
    caught = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in caught:
        signal.signal(number, stop.handle)
    try:
        yield stop
    finally:
        for number, handler in caught.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: set by other than Python
