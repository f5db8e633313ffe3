"""What may be asked for. A parameter that is not here is refused, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

MOST_CHOICES = 16  # texts of one request
Stop = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Id = Annotated[int, Field(ge=0)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


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


class Body(Strict):
    """What both kinds of requests have. Those without an effect are taken where they ask for none."""

    model: str
    temperature: float = Field(default=1, ge=0, le=2)
    top_p: float = Field(default=1, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    n: int = Field(default=1, ge=1, le=MOST_CHOICES)
    stop: list[Stop] = Field(default=[], max_length=4)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    user: str | None = None
    frequency_penalty: Literal[0, None] = None
    presence_penalty: Literal[0, None] = None

    @field_validator("frequency_penalty", "presence_penalty", mode="before")
    @classmethod
    def _no_penalty(cls, value: Any) -> Any:
        return 0 if value == 0 else value  # 0.0, too

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop(cls, value: Any) -> Any:
        return [] if value is None else [value] if isinstance(value, str) else value

    @field_validator("stream_options", mode="before")
    @classmethod
    def _default_options(cls, value: Any) -> Any:
        return StreamOptions() if value is None else value


class CompletionBody(Body):
    """POST /v1/completions."""

    prompt: list[str | list[Id]]
    max_tokens: int | None = Field(default=None, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=5)
    echo: bool = False
    best_of: Literal[1, None] = None
    suffix: Literal["", None] = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompts(cls, value: Any) -> Any:
        """One text, one list of ids, or a list of either: always as a list of prompts."""
        if isinstance(value, str):
            return [value]
        if isinstance(value, list) and value:
            if all(type(item) is int for item in value):
                return [value]
            if all(isinstance(item, (str, list)) for item in value):
                return value
        raise ValueError("expected a text, a list of token ids, or a list of one of them")


class Message(Strict):
    role: str
    content: str
    name: None = None


class ChatBody(Body):
    """POST /v1/chat/completions."""

    messages: list[Message]
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)

    @field_validator("messages", mode="before")
    @classmethod
    def _plain_contents(cls, value: Any) -> Any:
        """A content in parts of text, as some clients send it, is their text."""
        return [_plain(message) for message in value] if isinstance(value, list) else value


def _plain(message: Any) -> Any:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
    ):
        return {**message, "content": "".join(part["text"] for part in content)}
    return message
