"""What `gpt2c prepare` reads: files of text, and from gpt2c.data.rows files and data sets of rows.

A source is read from any earlier `position` on, and then gives exactly what it would have given next.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gpt2c.data.packed import BUFFER, blocks, sha256, unpacked
from gpt2c.errors import UserError

PIECE = 2**20
# The end of what GPT-2's pattern never joins to what follows: no match holds a character that is not white space and,
# after it, a space or a line feed, and none looks further ahead than the first character that is not white space.
SAFE_END = re.compile(r"(?s:.*)\S(?=[ \n])")


class Text(NamedTuple):
    """A document, or a part of one."""

    text: str
    begins: bool
    """Whether a document begins here, or else goes on."""
    size: int
    """Bytes in UTF-8."""


class Source(ABC):
    """Gives Texts when iterated over. `position` can be kept as JSON; setting it lets the iteration begin there."""

    position: dict[str, Any]

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def __iter__(self) -> Iterator[Text]: ...

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the manifest says about it."""

    def go_on(self, recorded: dict[str, Any]) -> None:
        """Raise UserError if it is not what an interrupted command has recorded."""
        if self.identity() != recorded:
            raise UserError(
                f"{self.name} has changed since the preparation began: expected {recorded}, found {self.identity()}; "
                "begin anew with an empty --out"
            )


class File(Source):
    """A source on the disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self._identity: dict[str, Any] = {}

    def identity(self) -> dict[str, Any]:
        """Name, size and SHA-256 of the file as it is, packed or not."""
        if not self._identity:
            digest = sha256(self.path)
            self._identity = {"name": self.name, "bytes": self.path.stat().st_size, "sha256": digest}
        return self._identity


class TextFile(File):
    """A UTF-8 text, which is one document. position: byte of the unpacked file."""

    position = {"byte": 0}

    def __iter__(self) -> Iterator[Text]:
        with unpacked(self.path, self.position["byte"]) as file:
            for text in pieces(file, self.name, self.position["byte"]):
                self.position = {"byte": self.position["byte"] + text.size}
                yield text


class StandardInput(Source):
    """A UTF-8 text from a pipe, one document. position: its bytes so far, and their SHA-256."""

    position = {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, **self.position}

    def go_on(self, recorded: dict[str, Any]) -> None:
        """What has been read comes again, and is compared then."""

    def __iter__(self) -> Iterator[Text]:
        digest, start = hashlib.sha256(), self.position["bytes"]
        file = sys.stdin.buffer
        for block in blocks(file, start):
            digest.update(block)
        if digest.hexdigest() != self.position["sha256"]:
            raise UserError(
                f"the standard input's first {start} bytes are not those that the interrupted command has read: "
                "give the same input, or begin anew with an empty --out"
            )
        for text in pieces(file, "the standard input", start):
            digest.update(text.text.encode())
            self.position = {"bytes": self.position["bytes"] + text.size, "sha256": digest.hexdigest()}
            yield text


def pieces(file: BinaryIO, name: str, start: int) -> Iterator[Text]:
    """A text in pieces of at most 2**20 characters, cut where GPT-2's tokens of the pieces are those of the whole.

    The cut is before the last space or line feed that follows a character that is not white space. In 2**20 characters
    without such a place it is at their end, and there alone tokens may differ from the whole's.

    start: the byte that `file` is at. Raises UserError, with the byte, if it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    buffer, read, begins, ended = "", start, start == 0, False
    while not ended or buffer:
        while not ended and len(buffer) <= PIECE:
            block = file.read(BUFFER)
            ended = not block
            waiting = len(decoder.getstate()[0])
            try:
                buffer += decoder.decode(block, final=ended)
            except UnicodeDecodeError as error:
                raise not_utf8(name, read - waiting, error) from error
            read += len(block)
        end = safe_end(buffer)
        if end or begins:
            yield Text(buffer[:end], begins, len(buffer[:end].encode()))
        buffer, begins = buffer[end:], False


def safe_end(text: str) -> int:
    """Length of the first piece of `text`; it depends on the first 2**20 + 1 characters alone."""
    if len(text) <= PIECE:
        return len(text)
    found = SAFE_END.match(text, 0, PIECE + 1)
    return found.end() if found else PIECE


def not_utf8(name: str, start: int, error: UnicodeDecodeError) -> UserError:
    """The error for bytes that could not be decoded, the first of which is byte `start` of the source."""
    return UserError(
        f"{name} is not UTF-8 text: byte {start + error.start} is 0x{error.object[error.start]:02x} ({error.reason}); "
        "convert it to UTF-8 or leave it out"
    )
