"""Files of bytes, packed (.gz, .bz2, .xz, .zst) or not, read from the front or from any later byte on."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from gpt2c.errors import UserError, reason
from gpt2c.files import reading, require_file

BUFFER = 2**20
OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
SUFFIXES = (*OPENERS, ".zst")
PACKED_AT_ONCE = 2**14  # of zeros, these many bytes may unpack to half a GB


def inner_suffix(path: Path) -> str:
    """`.jsonl` of a.jsonl and of a.jsonl.gz, in lower case."""
    name = path.name.lower()
    packing = Path(name).suffix
    return Path(name.removesuffix(packing) if packing in SUFFIXES else name).suffix


class Unpacked(io.BufferedReader):
    """A file's bytes, unpacked. disk: the file as it is, which has been read up to disk.tell()."""

    def __init__(self, raw: io.RawIOBase, disk: io.RawIOBase) -> None:
        super().__init__(raw, BUFFER)
        self.disk = disk


@contextmanager
def unpacked(path: Path, start: int = 0) -> Iterator[Unpacked]:
    """The file's bytes, unpacked if its name says that it is packed, from byte `start` of them on.

    Raises UserError, also for what is read inside the block, if the file is missing, damaged or truncated.
    """
    with ExitStack() as stack:
        stack.enter_context(reading("data", path))
        stack.enter_context(_damaged(path))
        require_file("data", path)
        disk = stack.enter_context(path.open("rb", buffering=0))
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            file = stack.enter_context(Unpacked(disk, disk))
            file.seek(start)
        else:
            raw = _zst(path, disk) if suffix == ".zst" else OPENERS[suffix](disk, "rb")
            file = stack.enter_context(Unpacked(raw, disk))
            for _ in blocks(file, start):
                pass
        yield file


def blocks(file: BinaryIO, count: int) -> Iterator[bytes]:
    """The next `count` bytes, fewer if the file ends before, in blocks of at most 1 MiB."""
    while count > 0 and (block := file.read(min(count, BUFFER))):
        count -= len(block)
        yield block


def sha256(path: Path) -> str:
    """Of a whole file, in hexadecimal. UserError if it cannot be read."""
    digest = hashlib.sha256()
    with reading("data", path), path.open("rb") as file:
        while block := file.read(BUFFER):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} is truncated or damaged: {reason(error)}; make or fetch it anew") from error


def _zst(path: Path, disk: io.RawIOBase) -> io.RawIOBase:
    try:
        import zstandard
    except ImportError as error:
        raise UserError(
            f'reading {path} needs the package zstandard: install it with pip install "gpt2c[data]"'
        ) from error
    return _Zst(disk, zstandard)


class _Zst(io.RawIOBase):
    """The frames of a .zst file, one after the other. zstandard's own reader takes a truncated file for a whole one."""

    def __init__(self, disk: io.RawIOBase, zstandard) -> None:
        self._file = disk
        self._error = zstandard.ZstdError
        self._new_frame = lambda: zstandard.ZstdDecompressor().decompressobj()
        self._frame = None  # None between two frames
        self._unpacked = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: memoryview) -> int:
        while not self._unpacked:
            packed = self._file.read(PACKED_AT_ONCE)
            if not packed and self._frame is not None:
                raise EOFError("it ends inside a frame")
            if not packed:
                return 0
            self._unpacked = memoryview(self._unpack(packed))
        count = min(len(target), len(self._unpacked))
        target[:count] = self._unpacked[:count]
        self._unpacked = self._unpacked[count:]
        return count

    def _unpack(self, packed: bytes) -> bytes:
        parts = []
        while packed:
            self._frame = self._frame or self._new_frame()
            try:
                parts.append(self._frame.decompress(packed))
            except self._error as error:
                raise EOFError(reason(error)) from error
            if not self._frame.eof:
                break
            packed, self._frame = self._frame.unused_data, None
        return b"".join(parts)
