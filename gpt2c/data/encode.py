"""Texts to tokens on all cores: batches of about a megabyte go to processes, and come back in their order."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from multiprocessing import resource_tracker
from typing import Any

import numpy as np

from gpt2c.data.rows import Rows
from gpt2c.data.sources import Source, Text
from gpt2c.errors import UserError
from gpt2c.tokenizer import Tokenizer, get_tokenizer

BATCH_BYTES = 2**20
BATCHES_PER_WORKER = 3  # one at work, two waiting: a worker never waits for the reader


@dataclass(frozen=True)
class Place:
    """Where texts begin: the number of a source, and how many of its texts come before, with its position there.

    digest: SHA-256, as a chain, of all texts before. source_digest: of those before this source.
    """

    source: int = 0
    texts: int = 0
    position: dict[str, Any] | None = None
    digest: str = sha256(b"").hexdigest()
    source_digest: str = sha256(b"").hexdigest()

    def after(self, text: Text) -> Place:
        """The place after a text more, of the same source; its position is not known yet."""
        digest = sha256(bytes.fromhex(self.digest) + bytes([text.begins]) + text.text.encode()).hexdigest()
        return replace(self, texts=self.texts + 1, position=None, digest=digest)

    def after_source(self) -> Place:
        """The place after the last text of its source."""
        return Place(self.source + 1, digest=self.digest, source_digest=self.digest)


@dataclass
class Batch:
    """Texts, where what follows them begins, and how many bytes of the sources and bad rows have been passed then."""

    texts: list[Text] = field(default_factory=list)
    end: Place = Place()
    consumed: int = 0
    left_out: int = 0

    @property
    def documents(self) -> int:
        return sum(text.begins for text in self.texts)

    @property
    def bytes(self) -> int:
        return sum(text.size for text in self.texts)


def batches(sources: Sequence[Source], rows: Rows, place: Place, begin: Callable[[int], None]) -> Iterator[Batch]:
    """The texts of the sources from `place` on, where they are already, about a megabyte at a time.

    begin: called with each source's number before it is read, and once more when it has been.
    """
    texts: list[Text] = []
    size = 0
    before = sum(source.size or 0 for source in sources[: place.source])
    for number in range(place.source, len(sources)):
        source = sources[number]
        begin(number)
        for text in source:
            texts.append(text)
            size += text.size
            place = place.after(text)
            if size >= BATCH_BYTES:
                yield Batch(texts, replace(place, position=source.position), before + source.consumed, rows.left_out)
                texts, size = [], 0
        begin(number)
        place = place.after_source()
        before += source.size or 0
    yield Batch(texts, place, before, rows.left_out)


def encode(tokenizer: Tokenizer, texts: Sequence[Text]) -> np.ndarray:
    """uint16 ids of the texts, the tokenizer's separator, its end-of-text id, before each document."""
    separator = tokenizer.separator
    parts = [np.empty(0, dtype=np.uint16)]
    for text in texts:
        parts += [separator, tokenizer.encode(text.text)] if text.begins else [tokenizer.encode(text.text)]
    return np.concatenate(parts)


def encoded(work: Iterator[Batch], tokenizer: str, workers: int) -> Iterator[tuple[Batch, np.ndarray]]:
    """Each batch with its ids, in order. `workers` processes encode; with 1, this one does.

    Only a few batches are in memory at a time. Raises UserError if a process dies.
    """
    if workers == 1:
        for batch in work:
            yield batch, encode(get_tokenizer(tokenizer), batch.texts)
        return
    waiting: deque[tuple[Batch, Future[np.ndarray]]] = deque()
    pool = ProcessPoolExecutor(workers, _context(), _start, (tokenizer,))
    try:
        for batch in work:
            with _uninterrupted():  # the pool starts a process with each of the first ones
                waiting.append((batch, pool.submit(_encode, batch.texts)))
            if len(waiting) == workers * BATCHES_PER_WORKER:
                yield _finish(waiting)
        while waiting:
            yield _finish(waiting)
    except BrokenProcessPool as error:
        raise UserError(
            "a process that tokenises has died, perhaps for lack of memory: give the same command again, with fewer "
            "--workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _finish(waiting: deque[tuple[Batch, Future[np.ndarray]]]) -> tuple[Batch, np.ndarray]:
    batch, future = waiting.popleft()
    return batch, future.result()


def _context() -> Any:
    """Not fork: this process may have threads."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gpt2c.cli"])  # imported once, for all workers
    return context


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """For starting processes: a terminal's Ctrl-C, which goes to all, is their parent's alone, and comes when they have
    been started. A blocked signal stays blocked in what is started."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # which would unblock it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_tokenizer: Tokenizer


def _start(name: str) -> None:
    """Of a worker. It leaves Ctrl-C to its parent, and ends with it even if that is killed."""
    global _tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    _tokenizer = get_tokenizer(name)


def _encode(texts: Sequence[Text]) -> np.ndarray:
    return encode(_tokenizer, texts)
