"""What may be asked for. null is absence, everywhere; a parameter that is not here is refused, never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from gpt2c.serve import neutral
from gpt2c.serve.errors import ApiError, short

MOST_CHOICES = 16  # texts of one prompt
MOST_TEXTS = 64  # texts of one request
Stop = Annotated[str, StringConstraints(max_length=200)]
Id = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absence(cls, value: Any) -> Any:
        return {name: one for name, one in value.items() if one is not None} if isinstance(value, dict) else value


class Sampled(Strict):
    """What the page says of how tokens are drawn, and of how many at most."""

    length: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1, ge=0, le=2)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float = Field(default=1, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)


class Head(Strict):
    """What the page says of an attention to look at: one head, counted from 0, of one of the model's kinds."""

    kind: str
    layer: int = Field(ge=0)
    head: int = Field(ge=0)


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False
    continuous_usage_stats: Literal[False] = False


class Body(Strict):
    """What both kinds of requests have. without_effect: other parameters, with the values that are taken."""

    without_effect: ClassVar[Mapping[str, tuple[Any, ...]]]

    model: str
    temperature: float = Field(default=1, ge=0, le=2)
    top_p: float = Field(default=1, ge=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    n: int = Field(default=1, ge=1, le=MOST_CHOICES)
    max_tokens: int | None = Field(default=None, ge=0)
    max_completion_tokens: int | None = Field(default=None, ge=0)
    stop: list[Stop] = Field(default=[], max_length=64)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @model_validator(mode="before")
    @classmethod
    def _left_out(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return neutral.without_labels(neutral.leave_out(value, cls.without_effect))

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, value: Any) -> Any:
        """One string or several. An empty one stops nothing."""
        given = [value] if isinstance(value, str) else value
        return [stop for stop in given if stop not in (None, "")] if isinstance(given, list) else given

    def length(self) -> int | None:
        """The most tokens of each text, by its new name or its old one. ApiError if they differ."""
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            message = f"max_tokens is {old} and max_completion_tokens {new}, expected one of them"
            raise ApiError(400, message, param="max_tokens")
        return old if new is None else new


class CompletionBody(Body):
    """POST /v1/completions. Without a prompt, a text begins as all do that the model has learned from."""

    without_effect = neutral.OF_COMPLETIONS
    prompt: list[str | list[int]] = [""]
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool = False
    best_of: int = Field(default=1, ge=1)

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompts(cls, value: Any) -> Any:
        """One text, one list of ids, or a list of either: always as a list of prompts."""
        if isinstance(value, str):
            return [value]
        expected = "expected a text, a list of token ids, or a list of one of them"
        if not isinstance(value, list) or not value:
            raise ValueError(expected)
        prompts = value if isinstance(value[0], (str, list)) else [value]
        for prompt in prompts:
            wrong = [] if isinstance(prompt, str) else prompt if isinstance(prompt, list) else [prompt]
            wrong = [item for item in wrong if not isinstance(item, int) or isinstance(item, bool)]
            if wrong or not isinstance(prompt, (str, list)):
                raise ValueError(f"{expected}, not with {short(wrong[0] if wrong else prompt)} in it")
        return prompts

    @field_validator("logprobs", mode="before")
    @classmethod
    def _no_logprobs(cls, value: Any) -> Any:
        return None if value is False else value  # as chat completions say it

    @model_validator(mode="after")
    def _all_of_the_best(self) -> CompletionBody:
        if self.best_of not in (1, self.n):
            message = f"best_of is {self.best_of}, expected 1 or n ({self.n}): all texts are returned"
            raise ApiError(400, message, param="best_of", code="unsupported_value")
        return self


class Message(Strict):
    """A turn of a conversation. The role `developer` is another name of `system`."""

    role: str
    content: str

    @field_validator("role", mode="before")
    @classmethod
    def _role(cls, value: Any) -> Any:
        return "system" if value == "developer" else value


class ChatBody(Body):
    """POST /v1/chat/completions."""

    without_effect = neutral.OF_CHATS
    messages: list[Message]
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)

    @field_validator("messages", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        return [_plain(message, i) for i, message in enumerate(value)] if isinstance(value, list) else value


def _plain(message: Any, i: int) -> Any:
    """Without what has no effect; a content in parts of text, as some clients send it, is their text."""
    if not isinstance(message, dict):
        return message
    message = neutral.leave_out(message, neutral.OF_MESSAGES, f"messages.{i}.")
    content = message.get("content")
    return {**message, "content": _joined(content, f"messages.{i}.content")} if isinstance(content, list) else message


def _joined(parts: list[Any], where: str) -> str:
    if not parts:
        raise ApiError(400, f"{where}: expected a text, or a list of at least one part, found []", param=where)
    for j, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            message = f'{where}.{j}: expected {{"type": "text", "text": "..."}}, found {short(part)}'
            raise ApiError(400, message, param=f"{where}.{j}")
        for name in part.keys() - {"type", "text", "cache_control"}:  # how long others keep a prompt's cache
            if part[name] is not None:
                raise ApiError(400, f"{where}.{j}.{name} is not supported", param=where, code="unsupported_parameter")
    return "".join(part["text"] for part in parts)
