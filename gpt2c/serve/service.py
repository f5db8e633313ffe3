"""A model that is served: from what a request asks for to jobs of the engine, and from their tokens to text."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gpt2c.chat.session import RESERVED, first_that_fits
from gpt2c.chat.template import Template
from gpt2c.errors import UserError
from gpt2c.model import GPT2
from gpt2c.sampling import Sampling
from gpt2c.serve.engine import Engine, Finish, Full, Job
from gpt2c.serve.errors import ApiError, too_many
from gpt2c.serve.outbox import Outbox
from gpt2c.serve.text import TextWriter
from gpt2c.serve.tokens import Token, Wanted
from gpt2c.tokenizer import Tokenizer


@dataclass(frozen=True)
class Order:
    """One or several texts to write, each after its prompt of ids; text i is drawn with the seed + i.

    length: the most tokens of each, None for as many as the context has room for. ends: ids that end a text, besides
    the end-of-text token. stops: strings that end it. forgotten: exchanges that a conversation's prompt leaves out.
    """

    prompts: Sequence[Sequence[int]]
    length: int | None
    sampling: Sampling = Sampling()
    ends: frozenset[int] = frozenset()
    stops: Sequence[str] = ()
    wanted: Wanted | None = None
    forgotten: int = 0


@dataclass
class Delta:
    """What has come of text `index` since the last: text, tokens, and what ended it, by which id."""

    index: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    end: Token | None = None
    finish: str | None = None


@dataclass(frozen=True)
class Service:
    """name: what the API calls the model. template: None where it has not learned to chat."""

    name: str
    model: GPT2
    tokenizer: Tokenizer
    template: Template | None
    engine: Engine

    @property
    def context(self) -> int:
        return self.model.config.n_positions

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Ids of a text, or ids that are one; nothing is the end-of-text token. ApiError for what is no text."""
        if not isinstance(prompt, str):
            last = self.tokenizer.vocab_size - 1
            if max(prompt, default=0) > last:
                raise ApiError(400, f"prompt holds the token {max(prompt)}, expected at most {last}", param="prompt")
            return list(prompt) or [self.tokenizer.end_of_text]
        try:
            return self.tokenizer.encode(prompt).astype(np.int64).tolist() or [self.tokenizer.end_of_text]
        except UserError as error:
            raise ApiError(400, str(error), param="prompt") from error

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Ids up to where the reply begins. ApiError for wrong roles, or a model that has not learned to chat."""
        if self.template is None:
            message = f"the model {self.name} has not learned to chat (`gpt2c sft` teaches it): use /v1/completions"
            raise ApiError(400, message, param="model", code="no_chat_template")
        try:
            return self.template.prompt(messages).tolist()
        except UserError as error:
            raise ApiError(400, str(error), param="messages") from error

    def remember(self, messages: Sequence[dict[str, str]], length: int | None) -> tuple[list[int], int]:
        """As encode_chat, and how many exchanges, the oldest, are left out to make room for a reply."""
        prompt = self.encode_chat(messages)
        begin = 1 if messages[0]["role"] == "system" else 0
        system, turns = messages[:begin], messages[begin:]
        most = self.context - min(length or self.context, self.context // RESERVED)
        first = first_that_fits(self.template, system, turns, most)
        return (self.encode_chat([*system, *turns[first:]]), first // 2) if first else (prompt, 0)

    def chat_ends(self) -> frozenset[int]:
        """The ids that end a reply, besides the end-of-text token."""
        return frozenset() if self.template is None else frozenset({self.template.end})

    def ended(self, ids: Sequence[int]) -> str | None:
        """Why nothing may be written after a text: it ends with an id that ends texts, or fills the context."""
        if ids[-1] in self.chat_ends() | {self.tokenizer.end_of_text}:
            return "stop"
        return "length" if len(ids) == self.context else None

    def submit(self, order: Order) -> Answer:
        """Puts the texts in the queue. ApiError where one does not fit the context (400) or the queue (429)."""
        outbox: Outbox[tuple[int, Token | Finish]] = Outbox()
        jobs = []
        for i, prompt in enumerate(order.prompts):
            sampling = order.sampling
            if sampling.seed is not None:
                sampling = replace(sampling, seed=sampling.seed + i)
            ends = order.ends | {self.tokenizer.end_of_text}
            jobs.append(Job(i, prompt, self._length(prompt, order.length), sampling, ends, order.wanted, outbox))
        try:
            self.engine.submit(jobs)
        except Full as error:
            raise too_many() from error
        return Answer(self, jobs, order.stops)

    def _length(self, prompt: Sequence[int], length: int | None) -> int:
        room = self.context - len(prompt)
        if room < 1 or (length or 1) > room:
            asked = f"{len(prompt)} tokens and {length or 1} to write"
            message = f"the prompt has {asked}, expected together at most {self.context}"
            param = "max_tokens" if room > 0 else "prompt"
            raise ApiError(400, message, param=param, code="context_length_exceeded")
        return length or room


class Answer:
    """The texts of one request as they come."""

    def __init__(self, service: Service, jobs: Sequence[Job], stops: Sequence[str]) -> None:
        self._service, self._jobs = service, jobs
        self._open = {job.index: TextWriter(service.tokenizer, stops) for job in jobs}
        self.prompt_tokens = sum(len(job.prompt) for job in jobs)
        self.written_tokens = 0

    async def deltas(self) -> AsyncIterator[Delta]:
        """All that has come, a Delta for each text it is about, until all have ended. ApiError (500) for a failure."""
        while self._open:
            found: dict[int, Delta] = {}
            for index, item in await self._jobs[0].outbox.take():
                if index in self._open:
                    self._add(found.setdefault(index, Delta(index)), item)
            for delta in found.values():
                yield delta

    async def whole(self) -> list[Delta]:
        """Each text as one Delta. ApiError (500) for a failure."""
        texts = [Delta(job.index) for job in self._jobs]
        async for delta in self.deltas():
            text = texts[delta.index]
            text.text += delta.text
            text.tokens += delta.tokens
            text.end, text.finish = delta.end, delta.finish
        return texts

    def close(self) -> None:
        """Frees the places of texts that have not ended."""
        self._service.engine.cancel(self._jobs)

    def _add(self, delta: Delta, item: Token | Finish) -> None:
        writer = self._open[delta.index]
        if isinstance(item, Token):
            self.written_tokens += 1
            if item.id in self._jobs[delta.index].ends:
                delta.end = item
            else:
                delta.tokens.append(item)
                delta.text += writer.feed(item.id)
        elif item.reason == "failure":
            raise ApiError(500, item.message, "server_error")
        else:
            delta.finish = item.reason
            delta.text += writer.finish()
        if writer.stopped:
            delta.finish = "stop"
            self._service.engine.cancel([self._jobs[delta.index]])
        if delta.finish:
            del self._open[delta.index]
