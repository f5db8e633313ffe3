"""A long sequence of token ids in pieces, of which most stay on the disk."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

# The fingerprint reads everything up to this many tokens, and of more than that as many blocks, evenly spread.
WHOLE = 2**25
BLOCK = 2**16
BLOCKS = 256


class Piece(Protocol):
    """An array of uint16 ids, or a shard (gpt2c.data.shards) that reads and checks what is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


class Tokens:
    """The ids of all pieces as one sequence."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = [piece for piece in pieces if len(piece)]
        self._starts = np.cumsum([0] + [len(piece) for piece in self._pieces])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def window(self, start: int, length: int) -> np.ndarray:
        """A copy of the ids start .. start + length - 1, int64. They must exist. Raises UserError for an id that no
        tokenizer of the run's vocabulary has written."""
        out = np.empty(length, dtype=np.int64)
        filled = 0
        index = int(np.searchsorted(self._starts, start, side="right")) - 1
        while filled < length:
            offset = start + filled - int(self._starts[index])
            part = self._pieces[index][offset : offset + length - filled]
            out[filled : filled + len(part)] = part
            filled += len(part)
            index += 1
        return out

    def fingerprint(self) -> dict[str, int]:
        """Count and CRC-32 of the ids: tells whether a resumed run reads the data that it was started on.

        Of more than 2**25 tokens the CRC is that of 256 blocks of 2**16, evenly spread, the first and the last among
        them: 20 GB take as long as 33 MB.
        """
        count = len(self)
        starts = range(0, count, BLOCK)
        if count > WHOLE:
            starts = [(count - BLOCK) * i // (BLOCKS - 1) for i in range(BLOCKS)]
        crc = 0
        for start in starts:
            crc = zlib.crc32(self.window(start, min(BLOCK, count - start)).astype("<u2").tobytes(), crc)
        return {"tokens": count, "crc32": crc}
