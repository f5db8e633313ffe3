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
    if asked := memory_asked(error):
        return asked
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    line = re.sub(r"^(\[[^]]*:\d+\] *)+|^(Got: \w+: )?(\[Errno -?\d+\] )?", "", text.splitlines()[0])
    return line.rstrip(".:")


def memory_asked(error: BaseException) -> str | None:
    """The phrase for an error that says that memory could not be had, torch's, numpy's or our own; None for others."""
    text = str(error)
    on_gpu = type(error).__name__ == "OutOfMemoryError"  # torch's, which this module does not load
    if not (on_gpu or isinstance(error, MemoryError) or "DefaultCPUAllocator" in text):
        return None
    told = f"not enough memory{' on the GPU' if on_gpu else ''}"
    found = re.search(r"allocate (\d[\d.]*) ?(bytes|[KMGTP]iB)", text)
    if not found:
        return told
    size = float(found[1]) * (1 if found[2] == "bytes" else 1024 ** (1 + "KMGTP".index(found[2][0])))
    return (
        f"{told}, {size / 1e9:,.1f} GB were asked for"
        if size >= 1e8
        else f"{told}, {size / 1e6:,.1f} MB were asked for"
    )
