"""One thread that decodes every text that is asked for, all of them in one batch.

Reading the weights is what a step takes, and a step of 16 rows reads them once. Texts of any length join and leave
between two steps; long prompts are read in pieces, between which the others go on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from gpt2c.decode import MOST_ROWS, Decoder, can_decode, check_weights
from gpt2c.errors import reason
from gpt2c.generate import KVCache, check_finite, sample
from gpt2c.model import GPT2
from gpt2c.sampling import Sampling
from gpt2c.serve.outbox import Outbox
from gpt2c.serve.tokens import Token, Wanted, token

PIECE = 128  # tokens of a prompt that are read at a time: a quarter of a second of GPT-2 124M on two cores
logger = logging.getLogger("gpt2c.serve")


class Full(Exception):
    """There is no place for more texts, or calls."""


class Stopped(Exception):
    """The engine ended before it came to this."""


@dataclass(frozen=True)
class Finish:
    """The end of a text: at its length, at one of its end ids, or by a failure, in a sentence."""

    reason: Literal["length", "stop", "failure"]
    message: str = ""


@dataclass(frozen=True)
class Scored:
    """Tokens of a prompt in their order, with what the model said of each; of the first it says nothing."""

    tokens: Sequence[Token]


Item = Token | Scored | Finish


@dataclass(eq=False)
class Job:
    """A text to write: `prompt`, at least one id, followed by at most `length` more.

    ends: ids after which it ends. scored: whether the prompt's tokens are told, too, as `wanted`. Scored, Tokens, and
    then a Finish come to `outbox` with the job's `index`.
    """

    index: int
    prompt: Sequence[int]
    length: int
    sampling: Sampling
    ends: frozenset[int]
    wanted: Wanted | None
    outbox: Outbox[tuple[int, Item]]
    scored: bool = False
    cancelled: bool = field(default=False, init=False)


class Row:
    """A job in the batch: its cache, its generator, and the ids that its cache does not hold yet."""

    def __init__(self, model: GPT2, job: Job) -> None:
        self.job = job
        self.cache = KVCache(model, 1, max(1, len(job.prompt) + job.length - 1))
        seed = job.sampling.seed
        self.generator = None if seed is None else torch.Generator(model.wte.weight.device).manual_seed(seed)
        # The last of a prompt is read for what comes after it, and what nobody asks about is not read.
        self.unread = list(job.prompt) if job.length else list(job.prompt[:-1]) * job.scored
        self.written = 0
        self._next_told = 0.0  # when a token tells again what is wanted
        if job.scored:
            self._put(Scored([Token(job.prompt[0])]))

    @property
    def reads(self) -> bool:
        """Whether its prompt is to be read yet, or it ends without a token."""
        return len(self.unread) > 1 or not self.job.length

    def score(self, logits: Tensor) -> bool:
        """Tells of the prompt's next tokens what logits (n,V), after the last n that were read, say of them; returns
        whether that ends the text."""
        assert self.job.wanted is not None
        if len(logits):
            try:
                check_finite(logits)
            except ValueError as error:
                return self.fail(error)
        ids = self.job.prompt[self.cache.length - len(logits) + 1 : self.cache.length + 1]
        scored = [token(id, row, self.job.wanted) for id, row in zip(ids, logits, strict=False)]
        self._put(Scored(scored))
        return False

    def fail(self, error: Exception) -> bool:
        """Ends a text for damaged weights, in one sentence."""
        self._put(Finish("failure", str(error)), at_once=True)
        return True

    def end(self) -> bool:
        """Ends a text of which nothing is written."""
        self._put(Finish("length"), at_once=True)
        return True

    def take(self, logits: Tensor) -> bool:
        """Draws the next token from logits (1,V); returns whether that ends the text."""
        job, how = self.job, self.job.sampling
        try:
            id = int(sample(logits, how.temperature, how.top_k, how.top_p, self.generator))
        except ValueError as error:
            return self.fail(error)
        self.unread = [id]
        self.written += 1
        items: list[Item] = [token(id, logits[0], self._wanted())]
        if id in job.ends:
            items.append(Finish("stop"))
        elif self.written == job.length:
            items.append(Finish("length"))
        ended = len(items) == 2
        self._put(*items, at_once=ended)
        return ended

    def _put(self, *items: Item, at_once: bool = False) -> None:
        self.job.outbox.put(*((self.job.index, item) for item in items), at_once=at_once)

    def _wanted(self) -> Wanted | None:
        wanted, now = self.job.wanted, time.monotonic()
        if wanted is None or now < self._next_told:
            return None
        self._next_told = now + wanted.pause
        return wanted


class Engine:
    """A model's thread. `start` and `stop` it; jobs that are left then end with a failure, calls with Stopped.

    weights: what a step reads, as in gpt2c.generate.stream. queue: jobs that may wait for a row.
    """

    def __init__(self, model: GPT2, weights: str = "fp32", rows: int = MOST_ROWS, queue: int = 64) -> None:
        check_weights(model, weights)
        self.model, self.weights, self.rows, self.queue = model, weights, rows, queue
        self._kernel = can_decode(model)
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._running: list[Row] = []
        self._calls: deque[tuple[Future, Callable[[], Any]]] = deque()
        self._stopping = False
        self._decoder: Decoder | None = None
        self._decoded: list[Row] = []  # the decoder's rows
        self._thread = threading.Thread(target=self._work, name="gpt2c-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def interrupt(self) -> None:
        """Lets the thread end after its present step; does not wait, so that a signal's handler may call it."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def stop(self) -> None:
        """Ends all jobs; returns when the thread has ended. May be called again."""
        self.interrupt()
        if self._thread.is_alive():
            self._thread.join()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Takes all of the jobs, or none and raises Full."""
        with self._changed:
            free = self.rows + self.queue - len(self._running) - len(self._waiting)
            if len(jobs) > free or self._stopping:
                raise Full
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Frees the places of the jobs, before the next step at the latest; those that have ended are left alone."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._waiting = deque(job for job in self._waiting if not job.cancelled)
            self._changed.notify()

    def call(self, function: Callable[[], Any]) -> Future:
        """What `function` returns, run on the thread between two steps: two at once would fight for the cores.

        One between two steps, so that the texts go on. Raises Full if as many wait as jobs may.
        """
        future: Future = Future()
        with self._changed:
            self._calls = deque(call for call in self._calls if not call[0].cancelled())
            if len(self._calls) >= self.queue:
                raise Full
            if self._stopping:
                future.set_exception(Stopped())
                return future
            self._calls.append((future, function))
            self._changed.notify()
        return future

    def load(self) -> tuple[int, int]:
        """Jobs in the batch, and jobs that wait."""
        with self._changed:
            return len(self._running), len(self._waiting)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._waiting or self._running or self._calls)
                if self._stopping:
                    break
                self._running = [row for row in self._running if not row.job.cancelled]
                while self._waiting and len(self._running) < self.rows:
                    self._running.append(Row(self.model, self._waiting.popleft()))
                call = self._calls.popleft() if self._calls else None
            if call is not None:
                _fulfil(*call)
            try:
                ended = self._step(list(self._running))
            except Exception as error:
                logger.exception("a step failed")
                ended = self._fail(f"the server failed: {reason(error)}")
            if ended:
                with self._changed:
                    self._running = [row for row in self._running if row not in ended]
        self._fail("the server is stopping")

    def _fail(self, message: str) -> list[Row]:
        """Ends what is in the batch and, when stopping, what waits."""
        with self._changed:
            jobs = [row.job for row in self._running] + list(self._waiting) * self._stopping
            ended, calls = list(self._running), list(self._calls) * self._stopping
        for job in jobs:
            job.outbox.put((job.index, Finish("failure", message)), at_once=True)
        for future, _ in calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(Stopped())
        return ended

    @torch.no_grad()
    def _step(self, rows: list[Row]) -> list[Row]:
        """A piece of one prompt, then a token of each text whose prompt has been read; returns the rows that ended."""
        ended = []
        reading = next((row for row in rows if row.reads), None)
        writing = [row for row in rows if not row.reads]
        if reading is not None and self._read(reading):
            ended.append(reading)
        if writing:
            logits = self._logits(writing)
            ended += [row for i, row in enumerate(writing) if row.take(logits[i : i + 1])]
        return ended

    def _read(self, row: Row) -> bool:
        """The next piece of the row's prompt and, after the last, its first token; returns whether that ends it."""
        piece, row.unread = row.unread[:PIECE], row.unread[PIECE:]
        logits = torch.empty(0, dtype=torch.float32, device="cpu")
        if piece:
            y = self.model.hidden(self._tensor([piece]), cache=row.cache)
            logits = self.model.logits(y if row.job.scored else y[-1:]).float()
        if row.job.scored and row.score(logits):
            return True
        if row.unread:
            return False
        return row.take(logits[-1:]) if row.job.length else row.end()

    def _logits(self, rows: list[Row]) -> Tensor:
        """(B,V) fp32 after each row's one unread id."""
        ids = self._tensor([row.unread for row in rows])
        if not self._kernel:  # half precision, which the kernel does not take
            hidden = [self.model.hidden(ids[i : i + 1], cache=row.cache) for i, row in enumerate(rows)]
            return self.model.logits(torch.cat(hidden)).float()
        if self._decoder is None or self._decoded != rows:
            after = self._decoder if self._texts_go_on(rows) else None
            self._decoder = Decoder(self.model, [row.cache for row in rows], self.weights, after)
            self._decoded = rows
        return self._decoder.step(ids)

    def _texts_go_on(self, rows: list[Row]) -> bool:
        """Whether one of the decoder's texts is among the rows. If not, the weights may be others by now."""
        return self._decoder is not None and any(row in self._decoded for row in rows)

    def _tensor(self, ids: list[list[int]]) -> Tensor:
        return torch.tensor(ids, dtype=torch.int64, device=self.model.wte.weight.device)


def _fulfil(future: Future, function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)
