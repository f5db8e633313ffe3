"""Ranges of bytes of many files. They are not mapped: a mapped file that is shortened ends the process."""

from __future__ import annotations

import os
import threading
from collections import deque
from pathlib import Path
from weakref import ref

from gpt2c.errors import UserError
from gpt2c.files import reading

MOST_OPEN = 256  # of the 1,024 that systems allow a process

_open: deque[ref[Ranges]] = deque()
_lock = threading.Lock()  # a file is not closed while another thread reads it


class Ranges:
    """A file that is kept open while few others are: what replaces or deletes it meanwhile changes nothing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        with _lock, reading("token shard", path):
            self._open()
            self._size = os.fstat(self._file).st_size

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from byte `start` on. UserError if the file has become shorter, or cannot be read."""
        with _lock, reading("token shard", self._path):
            if self._file is None:
                self._open_again()
            os.lseek(self._file, start, os.SEEK_SET)
            found = b""
            while len(found) < size and (part := os.read(self._file, size - len(found))):
                found += part
        if len(found) < size:
            raise UserError(
                f"{self._path} has been shortened since it was opened: it ends at byte {start + len(found)}, expected "
                f"at least {start + size}; put the whole file back, and go on with --resume if a run has stopped"
            )
        return found

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        _open.append(ref(self))
        while len(_open) > MOST_OPEN:
            if (oldest := _open.popleft()()) is not None:
                oldest.close()

    def _open_again(self) -> None:
        self._open()
        found = os.fstat(self._file).st_size
        if found != self._size:
            self.close()
            raise UserError(
                f"{self._path} has been replaced since it was opened: it has {found} bytes, expected {self._size}; put "
                "the former file back, and go on with --resume if a run has stopped"
            )

    def close(self) -> None:
        """Close the file; it is opened again by the next read."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:
        self.close()
