"""The two forms in which OpenAI's API gives texts: completions and chat completions, in chunks and whole."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gpt2c.serve.service import Delta
from gpt2c.serve.text import spelled
from gpt2c.serve.tokens import Token
from gpt2c.tokenizer import StreamDecoder, Tokenizer


class Form(Protocol):
    """One response, being written. `chunk` gives a piece of it as an event has it, `choices` all that have come."""

    def head(self, chunk: bool) -> dict[str, Any]: ...

    def openings(self) -> list[dict[str, Any]]: ...

    def chunk(self, delta: Delta) -> dict[str, Any]: ...

    def choices(self, deltas: Sequence[Delta]) -> list[dict[str, Any]]: ...


class CompletionForm:
    """echoed: what each text begins with, its prompt or nothing. logprobs: whether tokens are told."""

    def __init__(self, model: str, tokenizer: Tokenizer, echoed: Sequence[str], logprobs: bool) -> None:
        self._tokenizer, self._echoed, self._logprobs = tokenizer, echoed, logprobs
        self._id, self._model, self._created = f"cmpl-{uuid.uuid4().hex}", model, int(time.time())
        self._offsets = [0] * len(echoed)
        self._decoders = [StreamDecoder(tokenizer) for _ in echoed]

    def head(self, chunk: bool) -> dict[str, Any]:
        return {"id": self._id, "object": "text_completion", "created": self._created, "model": self._model}

    def openings(self) -> list[dict[str, Any]]:
        return [self.chunk(Delta(i, text)) for i, text in enumerate(self._echoed) if text]

    def chunk(self, delta: Delta) -> dict[str, Any]:
        logprobs = self._told(delta) if self._logprobs else None
        return {"index": delta.index, "text": delta.text, "logprobs": logprobs, "finish_reason": delta.finish}

    def choices(self, deltas: Sequence[Delta]) -> list[dict[str, Any]]:
        return [self.chunk(Delta(d.index, self._echoed[d.index] + d.text, d.tokens, None, d.finish)) for d in deltas]

    def _told(self, delta: Delta) -> dict[str, Any]:
        tokens, i = delta.tokens, delta.index
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[i])
            self._offsets[i] += len(self._decoders[i].feed(token.id))
        return {
            "tokens": [spelled(self._tokenizer, token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{spelled(self._tokenizer, id): lp for id, lp in token.top} for token in tokens],
            "text_offset": offsets,
        }


class ChatForm:
    """count: the number of replies. logprobs: whether tokens are told."""

    def __init__(self, model: str, tokenizer: Tokenizer, count: int, logprobs: bool) -> None:
        self._tokenizer, self._count, self._logprobs = tokenizer, count, logprobs
        self._id, self._model, self._created = f"chatcmpl-{uuid.uuid4().hex}", model, int(time.time())

    def head(self, chunk: bool) -> dict[str, Any]:
        kind = "chat.completion.chunk" if chunk else "chat.completion"
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def openings(self) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [{"index": i, "delta": delta, "logprobs": None, "finish_reason": None} for i in range(self._count)]

    def chunk(self, delta: Delta) -> dict[str, Any]:
        content = {"content": delta.text} if delta.text else {}
        return {"index": delta.index, "delta": content, **self._rest(delta)}

    def choices(self, deltas: Sequence[Delta]) -> list[dict[str, Any]]:
        said = [{"role": "assistant", "content": delta.text, "refusal": None} for delta in deltas]
        return [
            {"index": d.index, "message": message, **self._rest(d)} for d, message in zip(deltas, said, strict=True)
        ]

    def _rest(self, delta: Delta) -> Mapping[str, Any]:
        told = {"content": [self._told(token) for token in delta.tokens]} if self._logprobs else None
        return {"logprobs": told, "finish_reason": delta.finish}

    def _told(self, token: Token) -> dict[str, Any]:
        top = [self._one(id, logprob) for id, logprob in token.top]
        return {**self._one(token.id, token.logprob), "top_logprobs": top}

    def _one(self, id: int, logprob: float | None) -> dict[str, Any]:
        raw = list(self._tokenizer.decode_bytes([id]))
        return {"token": spelled(self._tokenizer, id), "logprob": logprob, "bytes": raw}
