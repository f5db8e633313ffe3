"""What a user can do wrong, told in one sentence."""

from __future__ import annotations

import re


class UserError(Exception):
    """A mistake or a condition outside the program; the message is one sentence: what, where, expected, found.

    Library code raises it; only `gpt2c.cli.main` catches it, prints `error: <sentence>` and exits with code 2.
    """


def shown(value: object) -> str:
    """A value within a sentence: on one line, and of an array its type alone."""
    return f"a {type(value).__name__}" if hasattr(value, "shape") else " ".join(repr(value).split())


class ToldElsewhere(UserError):
    """A UserError that another of a run's processes tells, so that the user reads it once."""


def reason(error: BaseException) -> str:
    """Another library's error as a phrase: the operating system's words without number and path, or the first
    line, without the place in the library's sources."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    line = re.sub(r"^(\[[^]]*:\d+\] *)+", "", text.splitlines()[0])
    return line.rstrip(".:")
