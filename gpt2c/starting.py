"""Ctrl-C in the seconds in which a command's modules are loaded."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def is_command() -> bool:
    """Whether the package is being imported by `gpt2c`, or by `python -m gpt2c`."""
    started = getattr(sys, "argv", [""])[0]
    return started == "-m" or Path(started).stem == "gpt2c"


@contextmanager
def ends_at_once(is_wanted: bool = True) -> Iterator[None]:
    """Inside the block Ctrl-C ends the process as other programs end, without Python's traceback of a half-loaded
    module; where it is ignored, or handled, or not wanted, nothing changes."""
    is_main = threading.current_thread() is threading.main_thread()
    if not (is_wanted and is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
