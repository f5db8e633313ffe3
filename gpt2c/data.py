"""Tokens to train on: read, split, and cut into windows.

Which windows a step sees is a function of (seed, step) alone, so a resumed run needs no data position.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gpt2c.errors import UserError
from gpt2c.files import reading
from gpt2c.tokenizer import Tokenizer

EMBEDDED = "embedded"
Batch = tuple[torch.Tensor, torch.Tensor]

# llm.c's token shard: 256 int32 (magic, version, count, zeros), then `count` uint16 ids of GPT-2's tokenizer.
SHARD_MAGIC = 20240520
SHARD_VERSION = 1
SHARD_HEADER_BYTES = 1024


class Tokens:
    """A long sequence of token ids, kept as one or more pieces (memory maps stay on disk)."""

    def __init__(self, pieces: Sequence[np.ndarray]) -> None:
        self._pieces = [piece for piece in pieces if len(piece)]
        self._starts = np.cumsum([0] + [len(piece) for piece in self._pieces])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def window(self, start: int, length: int) -> np.ndarray:
        """A copy of the ids start .. start + length - 1, int64. They must exist."""
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
        """Count and CRC-32 of the ids: tells whether a resumed run reads the data that it was started on."""
        crc = 0
        for piece in self._pieces:
            crc = zlib.crc32(memoryview(np.ascontiguousarray(piece)).cast("B"), crc)
        return {"tokens": len(self), "crc32": crc}


@dataclass(frozen=True)
class Dataset:
    """A training and a validation split of `tokens`: the validation split is the tail, from `boundary` on."""

    tokens: Tokens
    boundary: int

    def train_batch(self, seed: int, step: int, micro_step: int, micro_steps: int, batch: int, context: int) -> Batch:
        """Inputs and targets, (batch, context) int64 each, of one micro-step of one step.

        All micro-steps of a step share one draw of micro_steps * batch random windows of the training split: many small
        micro-steps see exactly the windows that one large batch would. Philox's raw words are taken, not a
        distribution, because NumPy keeps only the former the same from version to version.
        """
        words = np.random.Philox(key=seed, counter=[0, step, 0, 0]).random_raw(micro_steps * batch)
        starts = (words % np.uint64(self.boundary - context))[micro_step * batch : (micro_step + 1) * batch]
        return self._batch(starts, context)

    def val_batches(self, batch: int, context: int, max_batches: int) -> Iterator[Batch]:
        """The same batches at every call: windows at multiples of `context`, spread evenly over the validation split
        when it holds more than max_batches * batch of them."""
        windows = (len(self.tokens) - self.boundary - 1) // context
        count = min(windows, max_batches * batch)
        starts = self.boundary + np.arange(count) * windows // count * context
        for i in range(0, count, batch):
            yield self._batch(starts[i : i + batch], context)

    def _batch(self, starts: np.ndarray, context: int) -> Batch:
        rows = torch.from_numpy(np.stack([self.tokens.window(int(start), context + 1) for start in starts]))
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def load_dataset(data: str, tokenizer: Tokenizer, val_fraction: float, context: int) -> Dataset:
    """Read `data` and split it.

    Args:
        data: `embedded`, a UTF-8 text file, a `.bin` token shard, or a folder of either.
        val_fraction: share of the tokens, from the end, kept for validation.
        context: tokens in a window; each split must hold context + 1.
    Raises:
        UserError: missing, empty, too short, not UTF-8, a foreign or truncated shard, or ids outside the vocabulary.
    """
    tokens = Tokens(_embedded(tokenizer) if data == EMBEDDED else _read(Path(data), tokenizer))
    boundary = len(tokens) - int(len(tokens) * val_fraction)
    for name, found in (("training", boundary), ("validation", len(tokens) - boundary)):
        if found < context + 1:
            raise UserError(
                f"{data} is too short: its {len(tokens)} tokens leave {found} for the {name} split, at least "
                f"{context + 1} are needed (--context {context} + 1); give more text or a smaller --context"
            )
    return Dataset(tokens, boundary)


def _embedded(tokenizer: Tokenizer) -> list[np.ndarray]:
    """The language reference that every CPython carries for its help(): over 400 kB of English, its tables left out,
    from which a model would only learn to draw lines."""
    from pydoc_data.topics import topics

    documents = ["".join(filter(_is_prose, topics[key].splitlines(keepends=True))) for key in sorted(topics)]
    return _joined([tokenizer.encode(document) for document in documents], tokenizer)


def _is_prose(line: str) -> bool:
    """Whether the line is no row or rule of a table."""
    return "|" not in line and (not line.strip() or any(c.isalnum() for c in line))


def _read(path: Path, tokenizer: Tokenizer) -> list[np.ndarray]:
    files = _files(path)
    shards = [file for file in files if file.suffix == ".bin"]
    if shards and len(shards) < len(files):
        other = next(file for file in files if file.suffix != ".bin")
        raise UserError(f"{path} mixes token shards ({shards[0].name}) and text ({other.name}): keep one kind")
    if shards:
        return [_read_shard(file, tokenizer.vocab_size) for file in shards]
    pieces = _joined([piece for file in files if len(piece := tokenizer.encode(_read_text(file)))], tokenizer)
    if not pieces:
        raise UserError(f"{path} is empty: expected UTF-8 text")
    return pieces


def _files(path: Path) -> list[Path]:
    """`path` itself, or all files below it in sorted order, hidden ones left out."""
    with reading("data", path):
        if not path.is_dir():
            path.stat()
            return [path]
        files = sorted(p for p in path.rglob("*") if p.is_file())
    files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    if not files:
        raise UserError(f"{path} is an empty folder: expected text files or .bin token shards")
    return files


def _joined(documents: list[np.ndarray], tokenizer: Tokenizer) -> list[np.ndarray]:
    """The documents with an end-of-text id between each two of them."""
    end = np.array([tokenizer.end_of_text], dtype=np.uint16)
    return [piece for document in documents for piece in (end, document)][1:]


def _read_text(path: Path) -> str:
    with reading("text", path):
        raw = path.read_bytes()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text: byte {error.start} is 0x{raw[error.start]:02x} ({error.reason}); "
            "convert it to UTF-8 or take it out of the folder"
        ) from error


def _read_shard(path: Path, vocab_size: int) -> np.ndarray:
    with reading("token shard", path):
        size = path.stat().st_size
        header = np.fromfile(path, dtype="<i4", count=3)
    if len(header) < 3 or header[0] != SHARD_MAGIC:
        found = f"found {header[0]}" if len(header) else "the file is empty"
        raise UserError(f"{path} is not a token shard: expected the magic number {SHARD_MAGIC} at its start, {found}")
    if header[1] != SHARD_VERSION:
        raise UserError(f"{path} is a token shard of version {header[1]}: expected version {SHARD_VERSION}")
    expected = SHARD_HEADER_BYTES + 2 * int(header[2])
    if size != expected or header[2] < 0:
        raise UserError(
            f"{path} is truncated or damaged: its header announces {header[2]} tokens, {expected} bytes in all, "
            f"found {size} bytes"
        )
    if header[2] == 0:
        return np.empty(0, dtype="<u2")
    with reading("token shard", path):
        tokens = np.memmap(path, dtype="<u2", mode="r", offset=SHARD_HEADER_BYTES)
    if (largest := int(tokens.max())) >= vocab_size:
        raise UserError(
            f"{path}: token {int(tokens.argmax())} is {largest}, outside the model's vocabulary of {vocab_size}; "
            "token shards hold GPT-2 ids, use --tokenizer gpt2"
        )
    return tokens
