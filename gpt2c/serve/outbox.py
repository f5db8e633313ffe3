"""What a thread hands to the event loop, without making one wait for the other."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Outbox(Generic[Item]):
    """Made inside a running event loop; any thread puts, the loop takes all that has come since it took last.

    So a reader that is slower than the thread gets fewer, longer lists, and holds nothing up.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._items: deque[Item] = deque()
        self._told = False

    def put(self, *items: Item) -> None:
        self._items.extend(items)
        if self._told:
            return
        self._told = True
        try:
            self._loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:  # the loop has ended, and its readers with it
            pass

    async def take(self) -> list[Item]:
        """At least one item."""
        while not self._items:
            await self._ready.wait()
            self._ready.clear()
            self._told = False  # before the items are looked at: what comes from now on is told again
        return [self._items.popleft() for _ in range(len(self._items))]
