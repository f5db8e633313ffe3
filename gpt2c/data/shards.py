"""Token shards on the disk: llm.c's .bin and build-nanogpt's .npy, memory-mapped and never trusted.

.bin    256 little-endian int32: magic 20240520, version 1, number of tokens, zeros; then the tokens as uint16
        (llm.c, dev/data/data_common.py)
.npy    NumPy's array file of one dimension, uint16 (build-nanogpt, fineweb.py; numpy.lib.format)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gpt2c.errors import UserError, reason
from gpt2c.files import reading

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 1024
SUFFIXES = (".bin", ".npy")


class Shard:
    """The ids of a shard; those that are taken are checked against the vocabulary."""

    def __init__(self, path: Path, offset: int, count: int, vocab_size: int) -> None:
        self._path, self._offset, self._vocab_size = path, offset, vocab_size
        with reading("token shard", path):  # an empty file cannot be mapped
            self._ids = np.memmap(path, "<u2", "r", offset, count) if count else np.empty(0, "<u2")

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, part: slice) -> np.ndarray:
        """The ids of a slice of step 1, uint16. Raises UserError, with file and byte, if one is not in the
        vocabulary."""
        ids = self._ids[part]
        if len(ids) and int(ids.max()) >= self._vocab_size:
            bad = int(np.argmax(ids >= self._vocab_size))
            token = part.indices(len(self))[0] + bad
            raise UserError(
                f"{self._path}: token {token}, at byte {self._offset + 2 * token}, is {ids[bad]}, outside the "
                f"vocabulary of {self._vocab_size}; give the --tokenizer that wrote the shard, or make the shard anew"
            )
        return ids


def open_shard(path: Path, vocab_size: int) -> Shard:
    """The shard at `path`, .bin or .npy by its name. Raises UserError if it is foreign, truncated or damaged."""
    offset, count = (_npy_header if path.suffix == ".npy" else _bin_header)(path)
    with reading("token shard", path):
        found = path.stat().st_size
    if count < 0 or found != offset + 2 * count:
        raise UserError(
            f"{path} is truncated or damaged: its header announces {count} tokens, {offset + 2 * count} bytes in all, "
            f"found {found} bytes"
        )
    return Shard(path, offset, count, vocab_size)


def header(count: int) -> bytes:
    """The first 1024 bytes of a .bin of `count` tokens."""
    fields = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    fields[:3] = MAGIC, VERSION, count
    return fields.tobytes()


def _bin_header(path: Path) -> tuple[int, int]:
    """Where the tokens begin, in bytes, and how many the header announces."""
    with reading("token shard", path):
        fields = np.fromfile(path, dtype="<i4", count=3)
    if len(fields) < 3 or fields[0] != MAGIC:
        found = f"found {fields[0]}" if len(fields) else "the file ends before it"
        raise UserError(f"{path} is not a token shard: expected the magic number {MAGIC} at byte 0, {found}")
    if fields[1] != VERSION:
        raise UserError(
            f"{path} is a token shard of version {fields[1]}, at byte 4: expected version {VERSION}, of uint16 tokens"
        )
    return HEADER_BYTES, int(fields[2])


def _npy_header(path: Path) -> tuple[int, int]:
    """As _bin_header, of a .npy."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with reading("token shard", path), path.open("rb") as file:
        try:
            shape, _, dtype = readers[np.lib.format.read_magic(file)](file)
        except (ValueError, KeyError) as error:
            raise UserError(
                f"{path} is not a token shard: expected the header of a .npy file of version 1 or 2 at byte 0 "
                f"({reason(error)})"
            ) from error
        offset = file.tell()
    if dtype != np.dtype("<u2") or len(shape) != 1:
        raise UserError(f"{path} holds {dtype} of shape {shape}: expected uint16 ids in one dimension")
    return offset, shape[0]
