"""What a user can do wrong, told in one sentence.

Library code raises `UserError`; only `gpt2c.cli.main` catches it, prints `error: <sentence>` and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


class UserError(Exception):
    """A mistake or a condition outside the program; the message is one sentence: what, where, expected, found."""


def reason(error: Exception) -> str:
    """The operating system's words for an error, without Python's `[Errno 28]` and the path repeated."""
    return getattr(error, "strerror", None) or str(error).strip().rstrip(".")


@contextmanager
def reading(what: str, path: Path) -> Iterator[None]:
    """Turn a failed read of `path` into a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {reason(error)}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write (full disk, missing permission, file size limit) below `path` into a UserError."""
    try:
        yield
    # safetensors reports a failed write as its own error, with the operating system's words inside.
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write {path}: {reason(error)}; free space or choose another folder with --out"
        ) from error
