"""JSON as sources of rows: an object a line, or one after the other, alone or in an array, however laid out."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2c.data.encoding import not_utf8
from gpt2c.data.packed import BUFFER, Unpacked
from gpt2c.data.rows import BadRow, Rows
from gpt2c.data.sources import File, Text, opened_text
from gpt2c.errors import UserError, reason

LINES = (".jsonl", ".ndjson", ".jsonlines", ".jl")
BETWEEN = re.compile(r"[ \t\r\n,]*")
LONGEST_WORD = 12  # that JSON has, cut at its end: `-Infinity`, half of a character and the other
KEPT = 2**20


def json_source(path: Path, rows: Rows) -> File:
    """The source of a `.json` file, whose name does not say how its rows are laid out: its first line does."""
    with opened_text(path) as (file, _):
        line = file.readline() if file.peek(1)[:1] == b"{" else b""
    try:
        return JsonLines(path, rows) if isinstance(json.loads(line or b"[]"), dict) else JsonValues(path, rows)
    except (ValueError, RecursionError):
        return JsonValues(path, rows)


class JsonLines(File):
    """A JSON object a line. position: byte of the unpacked file and number of lines before it."""

    position = {"byte": 0, "line": 0}

    def __init__(self, path: Path, rows: Rows) -> None:
        super().__init__(path)
        self._rows = rows

    def __iter__(self) -> Iterator[Text]:
        line = self.position["line"]
        with opened_text(self.path, self.position["byte"]) as (file, byte):
            for raw in file:
                line += 1
                text = self._rows.taken(lambda raw=raw, byte=byte, line=line: self._text(raw, byte, line))
                byte += len(raw)
                self.position, self.consumed = {"byte": byte, "line": line}, file.disk.tell()
                if text is not None:
                    yield text

    def _text(self, raw: bytes, byte: int, line: int) -> Text | None:
        """The line's document; None if the line is blank."""
        where = f"{self.name}, line {line},"
        try:
            decoded = raw.decode("utf-8-sig")  # the mark of a file that was appended to another
            row = json.loads(decoded) if decoded.strip() else None
        except UnicodeDecodeError as error:
            raise BadRow(str(not_utf8(self.name, byte, error))) from error
        except (ValueError, RecursionError) as error:
            raise BadRow(f"{where} is not JSON: {reason(error)}") from error
        return None if not decoded.strip() else self._rows.document(row, where)


class JsonValues(File):
    """JSON objects in an array, or one after the other, on any number of lines. position: byte of the unpacked file,
    number of rows before it, and whether they are an array's.

    What is not JSON ends the reading, also where bad rows are left out: nothing says where the next one begins.
    """

    position = {"byte": 0, "row": 0, "array": False}

    def __init__(self, path: Path, rows: Rows) -> None:
        super().__init__(path)
        self._rows = rows

    def __iter__(self) -> Iterator[Text]:
        start, row, array = self.position.values()
        with opened_text(self.path, start) as (file, byte):
            if not start:
                head = file.peek()
                before = len(head) - len(head.lstrip())
                array = head[before : before + 1] == b"["
                byte += len(file.read(before + array))
            for value, end in self._values(file, byte, "]" if array else ""):
                row += 1
                where = f"{self.name}, row {row},"
                text = self._rows.taken(lambda value=value, where=where: self._rows.document(value, where))
                self.position = {"byte": end, "row": row, "array": array}
                self.consumed = file.disk.tell()
                if text is not None:
                    yield text

    def _values(self, file: Unpacked, byte: int, closing: str) -> Iterator[tuple[Any, int]]:
        """Each value, and the byte at its end; `closing` must follow the last one."""
        scan, text, at = json.JSONDecoder().raw_decode, _Text(file, self.name), 0
        while True:
            begin = BETWEEN.match(text.read, at).end()
            try:
                value, end = scan(text.read, begin)
            except json.JSONDecodeError as error:
                if text.more(error):
                    continue
                if text.read[begin:].strip() == closing:
                    return
                where = byte + len(text.read[at : error.pos].encode())
                raise UserError(f"{self.name} is not JSON, at byte {where}: {error.msg}") from error
            except RecursionError as error:
                raise UserError(f"{self.name} is nested too deeply after byte {byte}") from error
            byte += len(text.read[at:end].encode())
            at = end
            yield value, byte
            if at > KEPT:
                text.read, at = text.read[at:], 0


class _Text:
    """What has been read of a file so far, `read`."""

    def __init__(self, file: Unpacked, name: str) -> None:
        self.read = ""
        self._file, self._name = file, name
        self._decoder, self._ended = codecs.getincrementaldecoder("utf-8")(), False

    def more(self, error: json.JSONDecodeError) -> bool:
        """Read on, if the error may be that the text is not whole; returns whether there was more. It reads as much as
        there is already, so that a long value is scanned few times."""
        may_be_cut = error.msg.startswith("Unterminated string") or error.pos > len(self.read) - LONGEST_WORD
        if self._ended or not may_be_cut:
            return False
        block = self._file.read(max(BUFFER, len(self.read)))
        self._ended = not block
        waiting = len(self._decoder.getstate()[0])
        try:
            self.read += self._decoder.decode(block, final=self._ended)
        except UnicodeDecodeError as error:
            start = self._file.tell() - len(block) - waiting
            raise not_utf8(self._name, start, error) from error
        return True
