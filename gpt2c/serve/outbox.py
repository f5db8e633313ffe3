"""What a thread hands to the event loop, without making one wait for the other."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

PAUSE = 0.04  # as often as a film changes its picture
Item = TypeVar("Item")


class Outbox(Generic[Item]):
    """Made inside a running event loop; any thread puts, the loop takes all that has come since it took last.

    So a reader that is slower than the thread gets fewer, longer lists, and holds nothing up. It takes no more often
    than every PAUSE seconds, unless there is something that should not wait: to write an event takes a few tenths of a
    millisecond of Python, in which the thread must wait.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready, self._at_once = asyncio.Event(), asyncio.Event()
        self._items: deque[Item] = deque()
        self._told = False
        self._earliest = 0.0  # when the loop may take again

    def put(self, *items: Item, at_once: bool = False) -> None:
        self._items.extend(items)
        if not self._told:
            self._told = True
            self._call(self._ready.set)
        if at_once:
            self._call(self._at_once.set)

    async def take(self) -> list[Item]:
        """At least one item."""
        if (early := self._earliest - self._loop.time()) > 0:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._at_once.wait(), early)
        self._at_once.clear()
        while not self._items:
            await self._ready.wait()
            self._ready.clear()
            self._told = False  # before the items are looked at: what comes from now on is told again
        self._earliest = self._loop.time() + PAUSE
        return [self._items.popleft() for _ in range(len(self._items))]

    def _call(self, tell: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop has ended, and its readers with it
            self._loop.call_soon_threadsafe(tell)
