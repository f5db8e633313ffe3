"""A model that is served: from what a request asks for to jobs of the engine, and from their tokens to text."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gpt2c.chat.session import RESERVED, first_that_fits
from gpt2c.chat.template import Template
from gpt2c.errors import UserError
from gpt2c.load import require_rows
from gpt2c.model import GPT2
from gpt2c.sampling import Sampling
from gpt2c.serve.engine import Engine, Full, Item, Job, Scored
from gpt2c.serve.errors import ApiError, short, too_many
from gpt2c.serve.outbox import Outbox
from gpt2c.serve.text import TextWriter
from gpt2c.serve.tokens import Token, Wanted
from gpt2c.tokenizer import Tokenizer, prompt_ids
from gpt2c.words import counted


@dataclass(frozen=True)
class Order:
    """Texts to write, `n` after each prompt of ids, the first n after the first; text i is drawn with the seed + i.

    length: the most tokens of each, which must fit the context; None for as many as it has room for, but at most
    `unasked`. ends: ids that end a text, besides the end-of-text token. stops: strings that end it. scored: of each
    prompt, whether its own tokens are told as `wanted`. forgotten: exchanges that a conversation's prompt leaves out.
    """

    prompts: Sequence[Sequence[int]]
    length: int | None
    sampling: Sampling = Sampling()
    ends: frozenset[int] = frozenset()
    stops: Sequence[str] = ()
    wanted: Wanted | None = None
    forgotten: int = 0
    n: int = 1
    unasked: int | None = None
    scored: Sequence[bool] = ()


@dataclass
class Delta:
    """What has come of text `index` since the last: text, tokens, and what ended it, by which id.

    tokens: those of the prompt first, where they are told, which are no part of `text`.
    """

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
            last = self.model.config.vocab_size - 1
            found = next((id for id in prompt if not 0 <= id <= last), None)
            if found is not None:
                message = f"prompt holds the token {short(found)}, expected ids from 0 to {last}"
                raise ApiError(400, message, param="prompt")
            return list(prompt) or [self.tokenizer.start]
        try:
            ids = prompt_ids(self.tokenizer, prompt).tolist()
            require_rows(self.model, self.tokenizer, ids)
            return ids
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
        if ids[-1] in self.chat_ends().union(self.tokenizer.ends):
            return "stop"
        return "length" if len(ids) == self.context else None

    def submit(self, order: Order) -> Answer:
        """Puts the texts in the queue. ApiError where one does not fit the context (400) or the queue (429)."""
        outbox: Outbox[tuple[int, Item]] = Outbox()
        jobs = []
        scored = order.scored or [False] * len(order.prompts)
        for i in range(len(order.prompts) * order.n):
            prompt = order.prompts[i // order.n]
            sampling = order.sampling
            if sampling.seed is not None:
                sampling = replace(sampling, seed=sampling.seed + i)
            ends = order.ends.union(self.tokenizer.ends)
            length = self._length(prompt, order)
            jobs.append(Job(i, prompt, length, sampling, ends, order.wanted, outbox, scored[i // order.n]))
        try:
            self.engine.submit(jobs)
        except Full as error:
            raise too_many() from error
        return Answer(self, jobs, order)

    def _length(self, prompt: Sequence[int], order: Order) -> int:
        room = self.context - len(prompt)
        asked = 1 if order.length is None else order.length
        if asked > room:
            found = f"{counted(len(prompt), 'token')} and {short(asked)} to write"
            message = f"the prompt has {found}, expected together at most {self.context}"
            param = "max_tokens" if room > 0 else "prompt"
            raise ApiError(400, message, param=param, code="context_length_exceeded")
        return min(room, order.unasked or room) if order.length is None else asked


class Answer:
    """The texts of one request as they come."""

    def __init__(self, service: Service, jobs: Sequence[Job], order: Order) -> None:
        self._service, self._jobs = service, jobs
        self._open = {job.index: TextWriter(service.tokenizer, order.stops, job.prompt) for job in jobs}
        self.prompt_tokens = sum(map(len, order.prompts))
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

    def _add(self, delta: Delta, item: Item) -> None:
        writer = self._open[delta.index]
        if isinstance(item, Scored):
            delta.tokens += item.tokens
        elif isinstance(item, Token):
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
