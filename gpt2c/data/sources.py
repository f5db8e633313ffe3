"""What `gpt2c prepare` and `gpt2c train` read: texts, and from gpt2c.data.rows and its neighbours sources of rows.

A source is read from any earlier `position` on, and then gives exactly what it would have given next.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gpt2c.data.encoding import begin_text, not_utf8, warn_if_rows
from gpt2c.data.packed import BUFFER, Unpacked, blocks, sha256, unpacked
from gpt2c.errors import UserError
from gpt2c.files import reading

PIECE = 2**20
# The end of what GPT-2's pattern never joins to what follows: no match holds a character that is not white space and,
# after it, a space or a line's end, and none looks further ahead than the first character that is not white space.
SAFE_END = re.compile(r"(?s:.*)\S(?=[ \r\n])")


class Text(NamedTuple):
    """A document, or a part of one."""

    text: str
    begins: bool
    """Whether a document begins here, or else goes on."""
    size: int
    """Bytes in UTF-8."""


class Changed(UserError):
    """A source is not what an interrupted command has recorded."""


class Source(ABC):
    """Gives Texts when iterated over. `position` can be kept as JSON; setting it lets the iteration begin there."""

    position: dict[str, Any]
    size: int | None = None
    """Bytes to read in all, None if unknown."""
    consumed: int = 0
    """Bytes of them that have been read."""

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def __iter__(self) -> Iterator[Text]: ...

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the manifest says about it."""

    def go_on(self, recorded: dict[str, Any]) -> None:
        """Raise Changed if it is not what an interrupted command has recorded."""
        if self.identity() != recorded:
            raise Changed(
                f"{self.name} has changed since the preparation began: expected {recorded}, found {self.identity()}; "
                "begin anew with an empty --out"
            )


class File(Source):
    """A source on the disk."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        with reading("data", path):
            self.size = path.stat().st_size
        self._identity: dict[str, Any] = {}

    def identity(self) -> dict[str, Any]:
        """Name, size and SHA-256 of the file as it is, packed or not."""
        if not self._identity:
            digest = sha256(self.path)
            self._identity = {"name": self.name, "bytes": self.path.stat().st_size, "sha256": digest}
        return self._identity


@contextmanager
def opened_text(path: Path, start: int = 0) -> Iterator[tuple[Unpacked, int]]:
    """The unpacked bytes of a file of text from byte `start` on, and the byte that they begin at: a byte order mark at
    the front is passed over. UserError if what is at the front is no UTF-8 text."""
    with unpacked(path, start) as file:
        yield file, start or begin_text(file, str(path))


class TextFile(File):
    """A UTF-8 text, which is one document. position: byte of the unpacked file."""

    position = {"byte": 0}

    def __iter__(self) -> Iterator[Text]:
        byte = self.position["byte"]
        with opened_text(self.path, byte) as (file, start):
            if not byte:
                warn_if_rows(file, self.name)
            for text in pieces(file, self.name, start, begins=not byte):
                start += text.size
                self.position, self.consumed = {"byte": start}, file.disk.tell()
                yield text


class StandardInput(Source):
    """A UTF-8 text from a pipe, one document. position: its bytes so far, and their SHA-256."""

    position = {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, **self.position}

    def go_on(self, recorded: dict[str, Any]) -> None:
        """What has been read comes again, and is compared then."""

    def __iter__(self) -> Iterator[Text]:
        digest, start, name = hashlib.sha256(), self.position["bytes"], "the standard input"
        file = sys.stdin.buffer
        for block in blocks(file, start):
            digest.update(block)
        if digest.hexdigest() != self.position["sha256"]:
            raise UserError(
                f"the standard input's first {start} bytes are not those that the interrupted command has read: "
                "give the same input, or begin anew with an empty --out"
            )
        begins = not start
        if begins:
            start = begin_text(file, name)
            digest.update(codecs.BOM_UTF8[:start])
            warn_if_rows(file, name)
        for text in pieces(file, name, start, begins):
            digest.update(text.text.encode())
            start += text.size
            self.position = {"bytes": start, "sha256": digest.hexdigest()}
            yield text


def pieces(file: io.BufferedIOBase, name: str, start: int, begins: bool) -> Iterator[Text]:
    """A text in pieces of at most 2**20 characters, cut where GPT-2's tokens of the pieces are those of the whole.

    The cut is before the last space or line end that follows a character that is not white space. In 2**20 characters
    without such a place it is at their end, and there alone tokens may differ from the whole's.

    start: the byte that `file` is at. begins: whether the document begins there. Raises UserError, with the byte, if it
    is not UTF-8 text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    buffer, read, ended = "", start, False
    while not ended or buffer:
        while not ended and len(buffer) <= PIECE:
            block = file.read(BUFFER)
            ended = not block
            waiting = len(decoder.getstate()[0])
            try:
                buffer += decoder.decode(block, final=ended)
            except UnicodeDecodeError as error:
                raise not_utf8(name, read - waiting, error) from error
            if b"\0" in block:
                raise UserError(
                    f"{name} is no text: byte {read + block.index(0)} is 0, as in binary files and UTF-16; convert it "
                    "to UTF-8 or leave it out"
                )
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
