"""OpenAI's API: /v1/models, /v1/completions, /v1/chat/completions, whole or as server-sent events."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from gpt2c.sampling import Sampling
from gpt2c.serve.bodies import MOST_TEXTS, Body, ChatBody, CompletionBody
from gpt2c.serve.errors import ApiError
from gpt2c.serve.forms import ChatForm, CompletionForm, Form
from gpt2c.serve.responses import GONE, EventStream, while_connected
from gpt2c.serve.service import Answer, Order, Service
from gpt2c.serve.tokens import Wanted
from gpt2c.tokenizer import StreamDecoder

DEFAULT_LENGTH = 16  # tokens of a completion whose request does not say, as in OpenAI's API


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1")
    card = {"id": service.name, "object": "model", "created": int(time.time()), "owned_by": "gpt2c"}

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @routes.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        _check_model(service, name)
        return card

    @routes.post("/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        order = completion_order(service, body)
        echoed = [_spelled(service, prompt) * body.echo for prompt in body.prompt for _ in range(body.n)]
        form = CompletionForm(service.name, service.tokenizer, echoed, body.logprobs is not None)
        return await _respond(form, body, service.submit(order), request)

    @routes.post("/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        form = ChatForm(service.name, service.tokenizer, body.n, body.logprobs)
        return await _respond(form, body, service.submit(chat_order(service, body)), request)

    return routes


def completion_order(service: Service, body: CompletionBody) -> Order:
    """What /v1/completions asks for. ApiError for another model, or what is not supported."""
    _check_model(service, body.model)
    if len(body.prompt) * body.n > MOST_TEXTS:
        count = len(body.prompt) * body.n
        raise ApiError(400, f"prompt and n ask for {count} texts, expected at most {MOST_TEXTS}", param="n")
    return Order(
        prompts=list(map(service.encode, body.prompt)),
        length=body.length(),
        sampling=_sampling(body),
        stops=body.stop,
        wanted=None if body.logprobs is None else Wanted(body.logprobs),
        n=body.n,
        unasked=DEFAULT_LENGTH,
        # Of an empty prompt there is nothing to tell: the token that it begins with is not its own.
        scored=[body.echo and body.logprobs is not None and len(prompt) > 0 for prompt in body.prompt],
    )


def chat_order(service: Service, body: ChatBody) -> Order:
    """What /v1/chat/completions asks for. ApiError as above, or for a model that has not learned to chat."""
    _check_model(service, body.model)
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    if body.length() == 0:
        raise ApiError(400, "max_tokens: expected at least 1 of a reply, found 0", param="max_tokens")
    return Order(
        prompts=[service.encode_chat([message.model_dump() for message in body.messages])],
        length=body.length(),
        sampling=_sampling(body),
        ends=service.chat_ends(),
        stops=body.stop,
        wanted=Wanted(body.top_logprobs) if body.logprobs else None,
        n=body.n,
    )


def _spelled(service: Service, prompt: str | list[int]) -> str:
    """Without the beginning of a character that the text goes on with."""
    if isinstance(prompt, str):
        return prompt
    decoder = StreamDecoder(service.tokenizer)
    return "".join(map(decoder.feed, prompt))


def _check_model(service: Service, name: str) -> None:
    if name != service.name:
        message = f"there is no model {name!r} here, expected {service.name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")


def _sampling(body: Body) -> Sampling:
    return Sampling(body.temperature, None, body.top_p, body.seed)


async def _respond(form: Form, body: Body, answer: Answer, request: Request) -> Response:
    if body.stream:
        return EventStream(_events(form, answer, body.stream_options.include_usage), answer.close)
    try:
        deltas = await while_connected(request, answer.whole())
    finally:
        answer.close()
    if deltas is None:
        return Response(status_code=GONE)
    return JSONResponse({**form.head(chunk=False), "choices": form.choices(deltas), "usage": _usage(answer)})


async def _events(form: Form, answer: Answer, include_usage: bool) -> AsyncIterator[str]:
    """The last is [DONE]; a failure in between is an event with the error object."""
    head = {**form.head(chunk=True), **({"usage": None} if include_usage else {})}
    try:
        for choice in form.openings():
            yield event({**head, "choices": [choice]})
        async for delta in answer.deltas():
            yield event({**head, "choices": [form.chunk(delta)]})
        if include_usage:
            yield event({**head, "choices": [], "usage": _usage(answer)})
    except ApiError as error:
        yield event(error.body)
    yield "data: [DONE]\n\n"


def event(data: dict[str, Any]) -> str:
    """One server-sent event, in ASCII: many clients take U+2028 and the like, unescaped, for the end of a line."""
    return f"data: {json.dumps(data, allow_nan=False, separators=(',', ':'))}\n\n"


def _usage(answer: Answer) -> dict[str, int]:
    read, written = answer.prompt_tokens, answer.written_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
