"""Writing llm.c's .bin shards: each appears whole, under its name, when its last token has come."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpt2c.data.packed import sha256
from gpt2c.data.shards import header
from gpt2c.files import fsync, writing


class ShardWriter:
    """Cuts one sequence of tokens into shards; a context manager that leaves no unfinished shard behind.

    The first val_tokens tokens, if any, become FOLDER_val_000000.bin, the others FOLDER_train_000001.bin and so on, of
    shard_tokens each. `shards` holds file, tokens and sha256 of each that is complete, and may begin with some.
    """

    def __init__(self, folder: Path, val_tokens: int, shard_tokens: int, shards: list[dict[str, Any]]) -> None:
        self._folder, self._val_tokens, self._shard_tokens, self.shards = folder, val_tokens, shard_tokens, shards
        self._file: BinaryIO | None = None
        self.count = 0
        """Tokens in the present, unfinished shard."""

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    @property
    def path(self) -> Path:
        """The shard that the next token belongs to."""
        number = len(self.shards) + (not self._val_tokens)
        kind = "train" if number else "val"
        return self._folder / f"{self._folder.resolve().name}_{kind}_{number:06d}.bin"

    @property
    def _temporary(self) -> Path:
        return self.path.with_name(f".{self.path.name}.tmp")

    def write(self, ids: np.ndarray) -> int:
        """Append as many of these uint16 ids as the present shard takes; returns how many. Raises UserError if it
        cannot be written."""
        size = self._shard_tokens if self.shards or not self._val_tokens else self._val_tokens
        part = ids[: size - self.count]
        with writing(self.path):
            if self._file is None:
                self._file = self._temporary.open("wb")
                self._file.write(header(0))
            self._file.write(part.astype("<u2", copy=False).tobytes())
        self.count += len(part)
        if self.count == size:
            self.finish()
        return len(part)

    def finish(self) -> None:
        """Give the shard its name, if it holds a token."""
        if self._file is None:
            return
        path = self.path
        with writing(path):
            self._file.seek(0)
            self._file.write(header(self.count))
            self._file.close()
            fsync(self._temporary)
            os.replace(self._temporary, path)
            fsync(self._folder)
        self.shards.append({"file": path.name, "tokens": self.count, "sha256": sha256(path)})
        self._file, self.count = None, 0
