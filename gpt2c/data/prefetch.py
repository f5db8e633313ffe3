"""The next steps' batches, made in a thread while a step runs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Calls make(first), ..., make(last), the last included, in a thread of its own, at most `depth` results ahead.

    with Prefetch(make, 1, 100) as batches:
        for step in range(1, 101):
            train(batches.get(step))

    Leaving the block ends the thread, after the call of `make` that is running.
    """

    def __init__(self, make: Callable[[int], T], first: int, last: int, depth: int = 2) -> None:
        self._make, self._next, self._last = make, first, last
        self._results: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(range(first, last + 1),), daemon=True)

    def __enter__(self) -> Prefetch[T]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        while not self._results.empty():  # the thread may wait for a free place
            self._results.get_nowait()
        self._thread.join()

    def get(self, step: int) -> T:
        """The result for `step`; waits for it. Raises what `make` raised, and ValueError for a step out of turn."""
        if step != self._next or step > self._last:
            raise ValueError(f"step {step} is not prepared next: expected {self._next}, up to {self._last}")
        result, error = self._results.get()
        if error is not None:
            self._last = step - 1  # nothing follows
            raise error
        self._next += 1
        return result

    def _run(self, steps: range) -> None:
        for step in steps:
            result, error = None, None
            try:
                result = self._make(step)
            except BaseException as raised:  # whatever it is, it belongs to the caller of get
                error = raised
            self._results.put((result, error))
            if error is not None or self._stopped.is_set():
                return
