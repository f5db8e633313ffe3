"""The page and what it asks for: text with each token's alternatives, and what the model does inside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from importlib import resources
from typing import Any, TypeVar

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from gpt2c.sampling import Sampling
from gpt2c.serve.bodies import Id, Message, Strict
from gpt2c.serve.engine import Stopped
from gpt2c.serve.errors import ApiError
from gpt2c.serve.openai import event
from gpt2c.serve.responses import EventStream
from gpt2c.serve.service import Answer, Order, Service
from gpt2c.serve.text import spelled
from gpt2c.serve.tokens import Token, Wanted
from gpt2c.serve.view import Reader, Reading, map_kinds

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
WANTED = Wanted(top=40, rest=True)
Result = TypeVar("Result")


class WriteBody(Strict):
    """POST /api/write: one of text, ids and messages, and how to go on; without a length to the context's end."""

    text: str | None = None
    ids: list[Id] | None = None
    messages: list[Message] | None = None
    length: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1, ge=0, le=2)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float = Field(default=1, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)


class ReadBody(Strict):
    """POST /api/read and /api/lens: a text of ids."""

    ids: list[Id] = Field(min_length=1)


class AttentionBody(ReadBody):
    """POST /api/attention: one head, counted from 0, of one of the model's kinds of attention."""

    kind: str
    layer: int = Field(ge=0)
    head: int = Field(ge=0)


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    reader = Reader(service.model)
    kinds = map_kinds(service.model)

    @routes.get("/")
    async def page() -> Response:
        return _file("index.html")

    @routes.get("/web/{name}")
    async def file(name: str) -> Response:
        return _file(name)

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
        answer = service.submit(order)
        return EventStream(_written(service, list(order.prompts[0]), answer), answer.close)

    @routes.post("/api/read")
    async def read(body: ReadBody) -> dict[str, Any]:
        tokens = await inside(body, lambda reading: reading.tokens(WANTED))
        return {"tokens": [told(service, token) for token in tokens]}

    @routes.post("/api/attention")
    async def attention(body: AttentionBody) -> dict[str, Any]:
        kind = next((kind for kind in kinds if kind.name == body.kind), None)
        if kind is None or body.layer >= kind.layers or body.head >= kind.heads:
            raise ApiError(400, f"there is no head {body.head} of layer {body.layer} of {body.kind!r}")
        found = await inside(body, lambda reading: reading.attention(body.layer, body.head))
        return {
            "rows": [spelled(service.tokenizer, id) for id in found.rows],
            "columns": [spelled(service.tokenizer, id) for id in found.columns],
            "weights": [[round(p, 4) for p in row] for row in found.weights.tolist()],
            "earlier": [round(p, 4) for p in found.earlier.tolist()],
        }

    @routes.post("/api/lens")
    async def lens(body: ReadBody) -> dict[str, Any]:
        table = await inside(body, lambda reading: reading.lens())
        tokens = [spelled(service.tokenizer, id) for id in body.ids[-len(table[0]) :]]
        rows = [[[(spelled(service.tokenizer, id), round(p, 4)) for id, p in cell] for cell in row] for row in table]
        return {"tokens": tokens, "layers": rows}

    async def inside(body: ReadBody, look: Callable[[Reading], Result]) -> Result:
        """What `look` sees in the text, on the engine's thread."""
        ids = service.encode(body.ids)
        if len(ids) > service.context:
            raise ApiError(400, f"ids has {len(ids)} tokens, expected at most {service.context}", param="ids")
        try:
            return await asyncio.wrap_future(service.engine.call(lambda: look(reader.read(ids))))
        except Stopped as error:
            raise ApiError(503, "the server is stopping", "server_error") from error

    return routes


def describe(service: Service) -> dict[str, Any]:
    """What the page shows of the model, and offers."""
    config = service.model.config
    return {
        "name": service.name,
        "parameters": service.model.num_parameters(),
        "layers": config.n_layer,
        "heads": config.n_head,
        "width": config.n_embd,
        "context": config.n_positions,
        "vocabulary": config.vocab_size,
        "chat": service.template is not None,
        "attention": [vars(kind) for kind in map_kinds(service.model)],
    }


def write_order(service: Service, body: WriteBody) -> Order:
    given = [name for name in ("text", "ids", "messages") if getattr(body, name) is not None]
    if len(given) != 1:
        raise ApiError(400, f"found {' and '.join(given) or 'nothing'}, expected one of text, ids and messages")
    if body.messages is not None:
        prompt = service.encode_chat([message.model_dump() for message in body.messages])
    else:
        prompt = service.encode(body.text if body.ids is None else body.ids)
    sampling = Sampling(body.temperature, body.top_k, body.top_p, body.seed)
    return Order([prompt], body.length, sampling, service.chat_ends(), wanted=WANTED)


async def _written(service: Service, prompt: list[int], answer: Answer) -> AsyncIterator[str]:
    """First the prompt's tokens, then new ones as they come, and why it ended."""
    yield event({"prompt": [{"id": id, "text": spelled(service.tokenizer, id)} for id in prompt]})
    try:
        async for delta in answer.deltas():
            tokens = [told(service, token) for token in (*delta.tokens, delta.end) if token is not None]
            yield event({"tokens": tokens, "text": delta.text, "finish": delta.finish})
    except ApiError as error:
        yield event(error.body)


def told(service: Service, token: Token) -> dict[str, Any]:
    """A token as the page gets it."""
    return {
        "id": token.id,
        "text": spelled(service.tokenizer, token.id),
        "logprob": token.logprob,
        "top": [(id, spelled(service.tokenizer, id), round(logprob, 4)) for id, logprob in token.top],
        "rest": token.rest and vars(token.rest),
    }


def _file(name: str) -> Response:
    folder = resources.files("gpt2c") / "serve" / "web"
    if name not in {path.name for path in folder.iterdir()}:
        raise ApiError(404, f"there is no file {name!r}")
    return Response((folder / name).read_bytes(), media_type=TYPES[name.rpartition(".")[2]])
