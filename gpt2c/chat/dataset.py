"""What a fine-tuning run learns from: conversations, packed into rows, that stand in for gpt2c.data.Dataset.

Which rows a step sees is a function of (seed, step) alone, so a resumed run needs no data position.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2c.chat.conversations import Conversations, read_conversations
from gpt2c.chat.packing import Packed, Rows
from gpt2c.chat.template import Template
from gpt2c.data import order
from gpt2c.errors import UserError
from gpt2c.words import counted


@dataclass(frozen=True)
class ChatDataset:
    """Rows to learn from and rows to validate on. opening: a held-out conversation's messages before the first reply.
    summary: how many there are, as words."""

    template: Template
    train: Packed
    val: Packed
    opening: list[dict[str, str]]
    summary: str

    def fingerprint(self) -> dict[str, int]:
        """Tells whether a resumed run reads the conversations that it was started on: count and CRC-32 of the ids."""
        tokens, crc = 0, 0
        for split in (self.train, self.val):
            for ids, learned in split.encoded:
                tokens += len(ids)
                crc = zlib.crc32(ids.astype("<u2").tobytes() + learned.tobytes(), crc)
        return {"tokens": tokens, "crc32": crc}

    def train_batch(self, seed: int, step: int, micro_step: int, micro_steps: int, batch: int, context: int) -> Rows:
        """As gpt2c.data.Dataset's, of rows packed for the same context."""
        return self.train.batch(self._numbers(seed, step, micro_step, micro_steps, batch))

    def learned(self, seed: int, step: int, micro_step: int, micro_steps: int, batch: int, context: int) -> int:
        """The number of targets in that batch."""
        return int(self.train.learned[self._numbers(seed, step, micro_step, micro_steps, batch)].sum())

    def val_batches(self, batch: int, context: int, max_tokens: int, rank: int = 0, world: int = 1) -> Iterator[Rows]:
        """The first rows of at most max_tokens columns, at least one; of `world` processes each takes every world-th
        batch."""
        rows = range(min(len(self.val), max(1, max_tokens // context)))
        for i in range(rank * batch, len(rows), world * batch):
            yield self.val.batch(rows[i : i + batch])

    def _numbers(self, seed: int, step: int, micro_step: int, micro_steps: int, batch: int) -> np.ndarray:
        """Row numbers of a batch, in the endless sequence of epochs in each of which every row comes once."""
        first = ((step - 1) * micro_steps + micro_step) * batch
        epochs, numbers = np.divmod(np.arange(first, first + batch), len(self.train))
        for epoch in map(int, np.unique(epochs)):
            here = epochs == epoch
            numbers[here] = order.permutation(numbers[here], len(self.train), seed, epoch)
        return numbers


def load_chat_dataset(data: str, val_data: str, val_fraction: float, context: int, template: Template) -> ChatDataset:
    """The conversations of the file `data`, in rows of `context` columns; validated on are those of `val_data`, or if
    that is empty the last val_fraction of `data`. UserError if they cannot be used, with file and line."""
    if not data:
        raise UserError("there is nothing to learn: give a file of conversations with --data")
    read = read_conversations(Path(data), template, context)
    encoded, openings = read.encoded, read.openings
    counts = _oddities(read, data, context)
    if val_data:
        held = read_conversations(Path(val_data), template, context)
        counts += _oddities(held, val_data, context)
        val, opening = held.encoded, held.openings[0]
    else:
        kept = len(encoded) - max(1, int(len(encoded) * val_fraction))
        if kept < 1:
            raise UserError(
                f"{data} holds one conversation, expected at least two, of which one is validated on; or give "
                "others for that with --val-data"
            )
        encoded, val, opening = encoded[:kept], encoded[kept:], openings[kept]
    train = Packed(encoded, context)
    summary = (
        f"{counted(len(encoded), 'conversation')} in {counted(len(train), 'row')}, "
        f"{counted(int(train.learned.sum()), 'token')} of the "
        f"assistant's, and {len(val):,} to validate{counts}"
    )
    return ChatDataset(template, train, Packed(val, context), opening, summary)


def _oddities(read: Conversations, path: str, context: int) -> str:
    """What the context has done to a file's conversations, as words."""
    cut = f"{read.cut:,} end after the last reply within the context of {context}"
    skipped = f"{read.skipped:,} without a whole reply in the context of {context} are skipped"
    said = [words for words, count in ((cut, read.cut), (skipped, read.skipped)) if count]
    return f"; of {path} {', '.join(said)}" if said else ""
