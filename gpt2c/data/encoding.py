"""Whether bytes are UTF-8 text: what else they are is named, and a byte order mark is no part of the text."""

from __future__ import annotations

import codecs
import json
import re
import warnings
from typing import Protocol

from gpt2c.errors import UserError

# What files of other kinds begin with: what they are, and what to do.
OTHERS = {
    b"\xff\xfe\0\0": ("UTF-32", "convert it: iconv -f UTF-32 -t UTF-8"),
    b"\xff\xfe": ("UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
    b"\xfe\xff": ("UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
    b"\x1f\x8b": ("packed by gzip", "give it a name that ends in .gz"),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", "give it a name that ends in .zst"),
    b"BZh91AY&SY": ("packed by bzip2", "give it a name that ends in .bz2"),
    b"\xfd7zXZ\0": ("packed by xz", "give it a name that ends in .xz"),
    b"PAR1": ("a Parquet file", "give it a name that ends in .parquet"),
    b"PK\x03\x04": ("a zip archive", "unpack it, or if it is an office document save its text"),
    b"%PDF-": ("a PDF document", "save its text, with pdftotext say"),
}


class Peekable(Protocol):
    """A buffered file."""

    def peek(self, size: int = 0, /) -> bytes: ...

    def read(self, size: int = -1, /) -> bytes: ...


def begin_text(file: Peekable, name: str) -> int:
    """Read the byte order mark at the front of a file of UTF-8; returns the bytes that it takes, 3 or 0.

    Raises UserError if the file is of another kind.
    """
    head = file.peek(16)
    for begin, (kind, advice) in OTHERS.items():
        if head.startswith(begin):
            raise UserError(f"{name} is not UTF-8 text but {kind}: {advice}")
    return len(file.read(3)) if head.startswith(codecs.BOM_UTF8) else 0


def warn_if_rows(file: Peekable, name: str) -> None:
    """Say so if a text at its front looks like JSON's rows, on lines or in an array, which its name does not say."""
    head = file.peek().decode("utf-8", errors="replace").lstrip()
    if (start := re.match(r"(\[\s*)?(?=\{)", head)) is None:
        return
    try:
        json.JSONDecoder().raw_decode(head, start.end())
    except (ValueError, RecursionError):
        return
    warnings.warn(
        f"{name} looks like rows of JSON and is learned as a text, braces and all: give it a name that ends in .json "
        "to learn what they say",
        stacklevel=2,
    )


def not_utf8(name: str, start: int, error: UnicodeDecodeError) -> UserError:
    """The error for bytes that could not be decoded, the first of which is byte `start` of the source."""
    return UserError(
        f"{name} is not UTF-8 text: byte {start + error.start} is 0x{error.object[error.start]:02x} ({error.reason}); "
        "convert it to UTF-8 or leave it out"
    )
