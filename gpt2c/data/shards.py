"""Token shards on the disk: llm.c's .bin and build-nanogpt's .npy, memory-mapped and never trusted.

.bin    256 little-endian int32: magic 20240520, version 1, number of tokens, zeros; then the tokens as uint16
        (llm.c, dev/data/data_common.py)
        of nanoGPT's train.bin and val.bin, without a header, the ids alone (data/openwebtext/prepare.py)
.npy    NumPy's array file of one dimension, uint16 (build-nanogpt, fineweb.py; numpy.lib.format)
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from gpt2c.data.ranges import Ranges
from gpt2c.errors import UserError, reason
from gpt2c.files import reading

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 1024
SUFFIXES = (".bin", ".npy")
HEADERLESS = ("train.bin", "val.bin")  # nanoGPT's names
NANOGPT_VOCABULARY = "meta.pkl"


class Shard:
    """The ids of a shard; those that are taken are checked against the vocabulary."""

    def __init__(self, path: Path, offset: int, count: int, vocab_size: int) -> None:
        self._path, self._offset, self._count, self._vocab_size = path, offset, count, vocab_size
        self._file = Ranges(path)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> np.ndarray:
        """The ids of a slice of step 1, uint16. Raises UserError, with file and byte, if one is not in the
        vocabulary, or if the file has become shorter."""
        start, stop, _ = part.indices(self._count)
        ids = np.frombuffer(self._file.read(self._offset + 2 * start, 2 * max(0, stop - start)), "<u2")
        if len(ids) and int(ids.max()) >= self._vocab_size:
            bad = int(np.argmax(ids >= self._vocab_size))
            token = start + bad
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
    if (len(fields) < 3 or fields[0] != MAGIC) and path.name in HEADERLESS:
        return 0, _headerless_count(path)
    if len(fields) < 3 or fields[0] != MAGIC:
        found = f"found {fields[0]}" if len(fields) else "the file ends before it"
        raise UserError(
            f"{path} is not a token shard: expected the magic number {MAGIC} at byte 0, {found}; nanoGPT's, without a "
            "header, are read by their names, train.bin and val.bin"
        )
    if fields[1] != VERSION:
        raise UserError(
            f"{path} is a token shard of version {fields[1]}, at byte 4: expected version {VERSION}, of uint16 tokens"
        )
    return HEADER_BYTES, int(fields[2])


def _headerless_count(path: Path) -> int:
    """The number of tokens of nanoGPT's file, of GPT-2's vocabulary as it is for all its data but characters."""
    with reading("token shard", path):
        size = path.stat().st_size
        own = (path.parent / NANOGPT_VOCABULARY).exists()
    if own:
        raise UserError(
            f"{path} holds ids of a vocabulary of nanoGPT's own, {NANOGPT_VOCABULARY}: learn from the text that they "
            "were made from, --data input.txt"
        )
    if size % 2:
        raise UserError(f"{path} has {size} bytes and no header: expected an even number, of nanoGPT's uint16 ids")
    warnings.warn(
        f"{path} has no header: it is read as nanoGPT's uint16 ids, of the --tokenizer that is given", stacklevel=2
    )
    return size // 2


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
