"""The standard streams of a command: where they lead decides neither what it does nor that it ends without a traceback.

A full disk, a terminal that has closed, a stream that was closed before the start: a lost standard error is nothing, a
lost standard output ends a command by a sentence, but for one that does more than show (`unheeded`). Text that a stream
cannot encode is replaced.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from gpt2c.errors import UserError, reason


class Output:
    """A stream in place of sys.stdout or sys.stderr. `needed`: whether a failed write raises UserError, or
    BrokenPipeError where the reader has gone; otherwise `lost` is called with the reason, once, and all later text is
    dropped."""

    def __init__(self, stream: TextIO | None, needed: bool, lost: Callable[[str], None]) -> None:
        self.needed, self._lost = needed, lost
        self._problem = "it is closed" if stream is None else ""
        self._told = False
        self._stream = _empty() if stream is None else stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        if not self._problem:
            self._attempt(self._stream.flush)

    def isatty(self) -> bool:
        return not self._problem and self._stream.isatty()

    def _attempt(self, work: Callable[[], Any]) -> None:
        try:
            if not self._problem:
                work()
        except (OSError, ValueError) as error:  # ValueError: of a stream that was closed meanwhile
            self._problem = reason(error)
            _discard(self._stream)
            if self.needed and isinstance(error, BrokenPipeError):
                raise
        if self._problem and self.needed:
            raise UserError(f"cannot write the standard output: {self._problem}")
        if self._problem and not self._told:
            self._told = True
            self._lost(self._problem)


@contextmanager
def guarded() -> Iterator[None]:
    """Has sys.stdout and sys.stderr be such streams inside; all three standard streams are there."""
    _open_closed()
    before = sys.stdin, sys.stdout, sys.stderr
    handler = _errors(sys.stdout, "replace")
    sys.stdout = out = Output(sys.stdout, needed=True, lost=_tell)
    sys.stderr = err = Output(sys.stderr, needed=False, lost=lambda _: None)
    if sys.stdin is None:
        sys.stdin = _empty()
    try:
        yield
    finally:
        out.needed = False
        for stream in (out, err):
            stream.flush()  # what cannot be written is dropped here, before Python complains of it at its end
        sys.stdin, sys.stdout, sys.stderr = before
        _errors(sys.stdout, handler)


@contextmanager
def unheeded() -> Iterator[None]:
    """Inside, a standard output that cannot be written is told once on the standard error, and the work goes on."""
    stream = sys.stdout
    if not isinstance(stream, Output):
        yield
        return
    stream.needed = False
    try:
        yield
    finally:
        stream.flush()
        stream.needed = True


def _empty() -> TextIO:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8")


def _tell(problem: str) -> None:
    print(f"note: the standard output cannot be written ({problem}): the run goes on unseen", file=sys.stderr)


def _open_closed() -> None:
    """Open what of the descriptors 0, 1 and 2 is closed: a file of ours would get its number, and others' messages."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _errors(stream: TextIO | None, handler: str | None) -> str | None:
    """Set what a stream does with text that it cannot encode; returns what it did before, None if that is fixed."""
    before = getattr(stream, "errors", None)
    if handler is not None and hasattr(stream, "reconfigure"):
        with contextlib.suppress(OSError, ValueError):  # it flushes
            stream.reconfigure(errors=handler)
    return before


def _discard(stream: TextIO) -> None:
    """Lead a stream that fails to nowhere, with what it still holds."""
    with contextlib.suppress(OSError, ValueError):
        number = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
