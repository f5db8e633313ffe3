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
    """echoed: what each text begins with, its prompt or nothing. logprobs: whether tokens are told, also those."""

    def __init__(self, model: str, tokenizer: Tokenizer, echoed: Sequence[str], logprobs: bool) -> None:
        self._tokenizer, self._unsaid, self._logprobs = tokenizer, list(echoed), logprobs
        self._id, self._model, self._created = f"cmpl-{uuid.uuid4().hex}", model, int(time.time())
        self._offsets = [0] * len(echoed)
        self._decoders = [StreamDecoder(tokenizer) for _ in echoed]

    def head(self, chunk: bool) -> dict[str, Any]:
        return {"id": self._id, "object": "text_completion", "created": self._created, "model": self._model}

    def openings(self) -> list[dict[str, Any]]:
        """The prompts; those whose tokens are told come with the first of them."""
        return [self.chunk(Delta(i)) for i, text in enumerate(self._unsaid) if text and not self._logprobs]

    def chunk(self, delta: Delta) -> dict[str, Any]:
        text, self._unsaid[delta.index] = self._unsaid[delta.index] + delta.text, ""
        logprobs = self._told(delta) if self._logprobs else None
        return {"index": delta.index, "text": text, "logprobs": logprobs, "finish_reason": delta.finish}

    def choices(self, deltas: Sequence[Delta]) -> list[dict[str, Any]]:
        return list(map(self.chunk, deltas))

    def _told(self, delta: Delta) -> dict[str, Any]:
        """The id that ended the text is told, too: who scores texts expects each token that was drawn."""
        tokens, i = [*delta.tokens, *([delta.end] if delta.end else [])], delta.index
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[i])
            self._offsets[i] += len(self._decoders[i].feed(token.id))
        return {
            "tokens": [spelled(self._tokenizer, token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": list(map(self._top, tokens)),
            "text_offset": offsets,
        }

    def _top(self, token: Token) -> dict[str, float] | None:
        """The likeliest tokens and the one that came; of tokens that are spelled alike the likeliest."""
        if token.logprob is None:
            return None
        ascending = sorted((*token.top, (token.id, token.logprob)), key=lambda pair: pair[1])
        top = {spelled(self._tokenizer, id): logprob for id, logprob in ascending}
        return dict(reversed(top.items()))


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
