"""Parameters of OpenAI's API, and of servers like it, that have no effect here: taken where they ask for none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt2c.serve.errors import ApiError, short

# Each with the values that change nothing. A value that would have an effect is refused, never ignored.
OF_REQUESTS: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "repeat_penalty": (1,),
    "length_penalty": (1,),
    "logit_bias": ({}, []),
    "top_k": (-1, 0),
    "min_p": (0,),
    "typical_p": (1,),
    "mirostat": (0,),
    "use_beam_search": (False,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),  # of no tools
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "service_tier": ("auto", "default"),
    "store": (False,),
}
OF_COMPLETIONS: Mapping[str, tuple[Any, ...]] = {**OF_REQUESTS, "top_logprobs": (0,)}
OF_CHATS: Mapping[str, tuple[Any, ...]] = {**OF_REQUESTS, "echo": (False,), "best_of": (1,)}
OF_MESSAGES: Mapping[str, tuple[Any, ...]] = {"tool_calls": ([],), "annotations": ([],)}
# What the caller writes into its own books, with the type of its value.
LABELS: Mapping[str, type] = {
    "user": str,
    "metadata": dict,
    "safety_identifier": str,
    "prompt_cache_key": str,
    "prompt_cache_retention": str,
}


def leave_out(given: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]], where: str = "") -> dict[str, Any]:
    """`given` without nulls and without the neutral parameters; ApiError for one whose value would have an effect.

    where: what stands before a name in the error, "messages.0." say.
    """
    kept = {}
    for name, value in given.items():
        if value is None:
            continue
        if name not in neutral:
            kept[name] = value
        elif not any(_same(value, one) for one in (*neutral[name], *_zero_bias(name, value))):
            expected = " or ".join(map(short, neutral[name]))
            message = f"{where}{name} is not supported: leave it out or give {expected}, found {short(value)}"
            raise ApiError(400, message, param=where + name, code="unsupported_value")
    return kept


def without_labels(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` without what is for the caller's books; ApiError for one of another type."""
    for name in given.keys() & LABELS.keys():
        if not isinstance(given[name], LABELS[name]):
            kind = "an object" if LABELS[name] is dict else "a text"
            raise ApiError(400, f"{name}: expected {kind}, found {short(given[name])}", param=name)
    return {name: value for name, value in given.items() if name not in LABELS}


def _same(value: Any, one: Any) -> bool:
    return bool(value == one) and isinstance(value, bool) == isinstance(one, bool)  # False == 0


def _zero_bias(name: str, value: Any) -> tuple[Any, ...]:
    """A bias of 0 for each of some tokens, which is none."""
    zero = isinstance(value, dict) and all(_same(bias, 0) for bias in value.values())
    return (value,) if name == "logit_bias" and zero else ()
