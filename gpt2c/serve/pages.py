"""The page and what it asks for: text with each token's alternatives, and what the model does inside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import Field

from gpt2c.sampling import Sampling
from gpt2c.serve.bodies import Head, Id, Message, Sampled, Strict
from gpt2c.serve.engine import Full, Stopped
from gpt2c.serve.errors import ApiError, too_many
from gpt2c.serve.openai import event
from gpt2c.serve.outbox import PAUSE
from gpt2c.serve.responses import GONE, EventStream, while_connected
from gpt2c.serve.service import Answer, Order, Service
from gpt2c.serve.text import spelled
from gpt2c.serve.tokens import Token, Wanted
from gpt2c.serve.view import AttentionMap, MapKind, Reader, Reading, map_kinds
from gpt2c.words import counted

WANTED = Wanted(top=40, rest=True)
# While a text comes: to tell of a token takes a tenth of a millisecond, which the demo's 2,000 a second cannot spare.
STREAMED = replace(WANTED, pause=PAUSE)
MOST_READ = 128  # positions of a text at a time
Result = TypeVar("Result")


class WriteBody(Sampled):
    """POST /api/write: one of text, ids and messages, and how to go on, at most to the context's end.

    Of ids that end a text, or fill the context, nothing is written.
    """

    text: str | None = None
    ids: list[Id] | None = None
    messages: list[Message] | None = None


class TextBody(Strict):
    """POST /api/lens: a text of ids."""

    ids: list[Id] = Field(min_length=1)


class ReadBody(TextBody):
    """POST /api/read: the positions of tokens that are to tell what they could have been."""

    positions: list[Annotated[int, Field(ge=1)]] = Field(max_length=MOST_READ)


class AttentionBody(TextBody, Head):
    """POST /api/attention."""


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    reader = Reader(service.model)
    kinds = map_kinds(service.model)
    spell = cache(partial(spelled, service.tokenizer))  # each token brings forty

    @routes.get("/api/model")
    async def model() -> dict[str, Any]:
        return describe(service)

    @routes.get("/api/load")
    async def load() -> dict[str, int]:
        running, waiting = service.engine.load()
        return {"running": running, "waiting": waiting}

    @routes.post("/api/write")
    async def write(body: WriteBody) -> Response:
        order = write_order(service, body)
        prompt = order.prompts[0]
        if body.ids and (finish := service.ended(prompt)):
            return StreamingResponse(_nothing_written(spell, prompt, finish), media_type="text/event-stream")
        answer = service.submit(order)
        return EventStream(_written(spell, prompt, answer, order.forgotten), answer.close)

    @routes.post("/api/read")
    async def read(body: ReadBody, request: Request) -> dict[str, Any]:
        if max(body.positions, default=0) >= len(body.ids):
            message = f"positions: expected numbers below {len(body.ids)}, found {max(body.positions)}"
            raise ApiError(400, message, param="positions")
        tokens = await inside(request, body, lambda reading: reading.tokens(body.positions, WANTED))
        return {"tokens": [told(spell, token) for token in tokens]}

    @routes.post("/api/attention")
    async def attention(body: AttentionBody, request: Request) -> dict[str, Any]:
        check_head(kinds, body)
        look = partial(Reading.attention, layer=body.layer, head=body.head)
        return told_map(spell, await inside(request, body, look))

    @routes.post("/api/lens")
    async def lens(body: TextBody, request: Request) -> dict[str, Any]:
        table = await inside(request, body, Reading.lens)
        tokens = [spell(id) for id in body.ids[-len(table[0]) :]]
        rows = [[[(spell(id), round(p, 4)) for id, p in cell] for cell in row] for row in table]
        return {"tokens": tokens, "layers": rows}

    async def inside(request: Request, body: TextBody, look: Callable[[Reading], Result]) -> Result:
        """What `look` sees in the text, on the engine's thread; a client that goes frees its place there."""
        ids = service.encode(body.ids)
        if len(ids) > service.context:
            raise ApiError(400, f"ids has {len(ids)} tokens, expected at most {service.context}", param="ids")
        try:
            call = service.engine.call(lambda: look(reader.read(ids)))
            found = await while_connected(request, asyncio.wrap_future(call))
        except Full as error:
            raise too_many() from error
        except Stopped as error:
            raise ApiError(503, "the server is stopping", "server_error") from error
        except ValueError as error:  # damaged weights, in one sentence
            raise ApiError(500, str(error), "server_error") from error
        if found is None:
            raise ApiError(GONE, "the client has gone")
        return found

    return routes


def describe(service: Service) -> dict[str, Any]:
    """What the page shows of the model, and offers."""
    config = service.model.config
    return {
        "name": service.name,
        "facts": f"{service.model.num_parameters() / 1e6:.1f} million parameters, "
        f"{counted(config.n_layer, 'layer')} of {counted(config.n_head, 'head')}, {config.n_embd} wide, "
        f"{config.n_positions} tokens of context, "
        f"{config.vocab_size:,} known",
        "context": config.n_positions,
        "chat": service.template is not None,
        "lens": True,
        "source": None,
        "attention": [vars(kind) for kind in map_kinds(service.model)],
    }


def write_order(service: Service, body: WriteBody) -> Order:
    given = [name for name in ("text", "ids", "messages") if getattr(body, name) is not None]
    if len(given) != 1:
        raise ApiError(400, f"found {' and '.join(given) or 'nothing'}, expected one of text, ids and messages")
    forgotten = 0
    if body.messages is not None:
        prompt, forgotten = service.remember([message.model_dump() for message in body.messages], body.length)
    else:
        prompt = service.encode(body.text if body.ids is None else body.ids)
    sampling = Sampling(body.temperature, body.top_k, body.top_p, body.seed)
    room = max(1, service.context - len(prompt))
    length = min(body.length or room, room)
    return Order([prompt], length, sampling, service.chat_ends(), wanted=STREAMED, forgotten=forgotten)


async def _nothing_written(spell: Callable[[int], str], prompt: Sequence[int], finish: str) -> AsyncIterator[str]:
    yield event(told_prompt(spell, prompt))
    yield event({"tokens": [], "finish": finish})


async def _written(
    spell: Callable[[int], str], prompt: Sequence[int], answer: Answer, forgotten: int
) -> AsyncIterator[str]:
    """First the prompt's tokens, and how many exchanges are forgotten; new ones as they come, and why it ended."""
    yield event({**told_prompt(spell, prompt), "forgotten": forgotten})
    try:
        async for delta in answer.deltas():
            tokens = [told(spell, token) for token in (*delta.tokens, delta.end) if token is not None]
            yield event({"tokens": tokens, "text": delta.text, "finish": delta.finish})
    except ApiError as error:
        yield event(error.body)


def told_prompt(spell: Callable[[int], str], ids: Sequence[int]) -> dict[str, Any]:
    return {"prompt": [{"id": id, "text": spell(id)} for id in ids]}


def told(spell: Callable[[int], str], token: Token) -> dict[str, Any]:
    """A token as the page gets it."""
    if token.logprob is None:
        return {"id": token.id, "text": spell(token.id)}
    return {
        "id": token.id,
        "text": spell(token.id),
        "logprob": token.logprob,
        "top": [(id, spell(id), round(logprob, 4)) for id, logprob in token.top],
        "rest": token.rest and vars(token.rest),
    }


def told_map(spell: Callable[[int], str], found: AttentionMap) -> dict[str, Any]:
    """A map as the page gets it."""
    return {
        "rows": [spell(id) for id in found.rows],
        "columns": [spell(id) for id in found.columns],
        "weights": [[round(p, 4) for p in row] for row in found.weights.tolist()],
        "earlier": [round(p, 4) for p in found.earlier.tolist()],
    }


def check_head(kinds: Sequence[MapKind], asked: Head) -> None:
    """ApiError if no kind has the name, or it has no such layer or head."""
    if not any(kind.name == asked.kind and asked.layer < kind.layers and asked.head < kind.heads for kind in kinds):
        raise ApiError(400, f"there is no head {asked.head} of layer {asked.layer} of {asked.kind!r}")
