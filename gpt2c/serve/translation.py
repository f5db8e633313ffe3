"""What the page asks of an encoder-decoder: a source's translation, token by token, and its three attentions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field
from torch import Tensor

from gpt2c.errors import UserError
from gpt2c.generate import sample
from gpt2c.serve.bodies import Head, Id, Sampled, Strict
from gpt2c.serve.errors import ApiError, error_body, too_many
from gpt2c.serve.openai import event
from gpt2c.serve.pages import WANTED, check_head, told, told_map, told_prompt
from gpt2c.serve.responses import EventStream
from gpt2c.serve.tokens import Token, token
from gpt2c.serve.view import AttentionMap, MapKind
from gpt2c.translator import BEGIN, END, Translator
from gpt2c.words import counted

CROSS, TARGET, SOURCE = "cross-attention", "causal self-attention of the target", "self-attention of the source"
MOST_LETTERS = 2000  # of a source
MOST_BUSY = 64  # requests that are answered, or wait to be
Result = TypeVar("Result")


class Pair(Strict):
    """POST /api/write and /api/attention: a source and its target so far, which begins with BEGIN's id."""

    source: str = Field(max_length=MOST_LETTERS)
    ids: list[Id] = Field(default=[], max_length=MOST_LETTERS)


class TranslateBody(Pair, Sampled):
    """POST /api/write: until END, or as long as a target may be; after END nothing is written."""


class LookBody(Pair, Head):
    """POST /api/attention."""


@dataclass
class Translations:
    """A translator that is served. Its one thread does all of the work: two at once would fight for the cores.

    busy: requests that have a place, of MOST_BUSY.
    """

    name: str
    translator: Translator
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "gpt2c-translator"))
    busy: int = 0

    def enter(self) -> None:
        """Takes a place, which `leave` frees. ApiError if there is none."""
        if self.busy >= MOST_BUSY:
            raise too_many()
        self.busy += 1

    def leave(self) -> None:
        self.busy -= 1

    async def on_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)

    def encode(self, body: Pair) -> tuple[list[int], list[int]]:
        """Ids of source and target. ApiError for a source that is empty, unknown or too long, or for a wrong target."""
        begin, config = self.translator.ids[BEGIN], self.translator.model.config
        target = body.ids or [begin]
        try:
            source = self.translator.encode(body.source)
        except UserError as error:
            raise ApiError(400, str(error), param="source") from error
        if target[0] != begin or max(target) >= config.vocab_size:
            found = f"{target[0]} and up to {max(target)}"
            message = f"ids: expected {begin} and then ids below {config.vocab_size}, found {found}"
            raise ApiError(400, message, param="ids")
        if len(target) > config.n_positions:
            raise ApiError(400, f"ids has {len(target)} tokens, expected at most {config.n_positions}", param="ids")
        return source, target

    def spell(self, id: int) -> str:
        return self.translator.vocabulary[id]

    @torch.no_grad()
    def memory(self, source: Sequence[int]) -> Tensor:
        return self.translator.model.encode(torch.tensor([source], device="cpu"))

    @torch.no_grad()
    def next_token(self, memory: Tensor, target: Sequence[int], how: Callable[[Tensor], Tensor]) -> Token:
        """The token that `how` draws from the logits (1,V) after the target."""
        model = self.translator.model
        logits = model.logits(model.decode(torch.tensor([target], device="cpu"), memory)[:, -1]).float()
        return token(int(how(logits)), logits[0], WANTED)

    def look(self, source: list[int], target: list[int], kind: str, layer: int, head: int) -> AttentionMap:
        """Of cross-attention a row is the token that was said then: the one after the query's."""
        maps = self.translator.model.attention_maps(*(torch.tensor([ids], device="cpu") for ids in (source, target)))
        weights, rows, columns = {
            CROSS: (maps.cross, target[1:], source),
            TARGET: (maps.target, target, target),
            SOURCE: (maps.source, source, source),
        }[kind]
        if not weights.isfinite().all():
            raise ApiError(500, "the attention is not all finite, so the weights must be damaged", "server_error")
        none = torch.zeros(len(rows), dtype=torch.float32, device="cpu")
        return AttentionMap(rows, columns, weights[layer, 0, head, : len(rows)], none)


def map_kinds(translator: Translator) -> list[MapKind]:
    config = translator.model.config
    return [
        MapKind(CROSS, config.n_decoder, config.n_head, "text", "source"),
        MapKind(TARGET, config.n_decoder, config.n_head, "text", "text"),
        MapKind(SOURCE, config.n_encoder, config.n_head, "source", "source"),
    ]


def router(served: Translations) -> APIRouter:
    routes = APIRouter()
    kinds = map_kinds(served.translator)

    @routes.get("/api/model")
    async def model() -> dict[str, Any]:
        return describe(served)

    @routes.post("/api/write")
    async def write(body: TranslateBody) -> Response:
        source, target = served.encode(body)
        served.enter()
        return EventStream(_written(served, source, target, body), served.leave)

    @routes.post("/api/attention")
    async def attention(body: LookBody) -> dict[str, Any]:
        check_head(kinds, body)
        look = partial(served.look, *served.encode(body), body.kind, body.layer, body.head)
        served.enter()
        try:
            return told_map(served.spell, await served.on_thread(look))
        finally:
            served.leave()

    return routes


def describe(served: Translations) -> dict[str, Any]:
    """What the page shows of the model, and offers."""
    config = served.translator.model.config
    parameters = sum(p.numel() for p in served.translator.model.parameters())
    return {
        "name": served.name,
        "facts": f"{parameters / 1e6:.2f} million parameters, an encoder of {config.n_encoder} and a decoder of "
        f"{counted(config.n_decoder, 'layer')}, {counted(config.n_head, 'head')} each, {config.n_embd} wide",
        "context": config.n_positions - 1,
        "chat": False,
        "lens": False,
        "source": served.translator.known(),
        "attention": [vars(kind) for kind in map_kinds(served.translator)],
    }


async def _written(
    served: Translations, source: list[int], target: list[int], body: TranslateBody
) -> AsyncIterator[str]:
    """First what the target is so far, then new tokens as they come, and why it ended."""
    end, room = served.translator.ids[END], served.translator.model.config.n_positions - len(target)
    generator = None if body.seed is None else torch.Generator().manual_seed(body.seed)
    how = partial(sample, temperature=body.temperature, top_k=body.top_k, top_p=body.top_p, generator=generator)
    yield event(told_prompt(served.spell, target))
    memory = await served.on_thread(partial(served.memory, source))
    target = list(target)
    for _ in range(min(body.length or room, room)):
        if target[-1] == end:
            break
        try:
            found = await served.on_thread(partial(served.next_token, memory, target, how))
        except ValueError as error:  # damaged weights, in one sentence
            yield event(error_body(str(error), "server_error"))
            return
        target.append(found.id)
        yield event({"tokens": [told(served.spell, found)], "finish": None})
    yield event({"tokens": [], "finish": "stop" if target[-1] == end else "length"})
