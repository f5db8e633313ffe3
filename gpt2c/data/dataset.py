"""What a run learns from: tokens, split in two, from which each step's windows are cut.

Which windows a step sees is a function of (seed, step) alone, so a resumed run needs no data position.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from gpt2c.data import order
from gpt2c.data.tokens import Tokens

Batch = tuple[torch.Tensor, ...]  # what GPT2.forward takes: ids, targets, and where their documents begin, if masked
IGNORED = -100  # a target that is not learned


class Source(Protocol):
    """What a run learns from: a Dataset, or conversations (gpt2c/chat/dataset.py). Its methods are those of Dataset."""

    summary: str

    def fingerprint(self) -> dict[str, int | str]: ...

    def train_batch(
        self, seed: int, step: int, micro_step: int, micro_steps: int, batch: int, context: int
    ) -> Batch: ...

    def learned(self, seed: int, step: int, micro_step: int, micro_steps: int, batch: int, context: int) -> int: ...

    def val_batches(
        self, batch: int, context: int, max_tokens: int, rank: int = 0, world: int = 1
    ) -> Iterator[Batch]: ...


@dataclass(frozen=True)
class Dataset:
    """A training and a validation split of `tokens`: the validation split is the tail, from `boundary` on.

    `manifest` is the SHA-256 of what `gpt2c prepare` has written down about the tokens, empty if it has not made them.
    """

    tokens: Tokens
    boundary: int
    manifest: str = ""

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of tokens to learn from and to validate on."""
        return self.boundary, len(self.tokens) - self.boundary

    @property
    def summary(self) -> str:
        """The sizes as words."""
        learned, validated = self.sizes
        return f"{learned:,} tokens to learn and {validated:,} to validate"

    def fingerprint(self) -> dict[str, int | str]:
        """Tells whether a resumed run reads the data that it was started on: Tokens.fingerprint, and the manifest."""
        return {**self.tokens.fingerprint(), **({"manifest": self.manifest} if self.manifest else {})}

    def windows(self, context: int) -> int:
        """Number of windows in an epoch: what remains whole wherever the first one begins."""
        return max(1, self.boundary // context - 1)

    def train_batch(self, seed: int, step: int, micro_step: int, micro_steps: int, batch: int, context: int) -> Batch:
        """Inputs and targets, (batch, context) int64 each, of one micro-step of one step.

        step counts from 1, micro_step from 0. Row r is sample number ((step - 1) * micro_steps + micro_step) * batch +
        r of the endless sequence of epochs, in each of which every window comes once: many small micro-steps see
        exactly the windows that one large batch would, on however many processes.
        """
        first = ((step - 1) * micro_steps + micro_step) * batch
        return self._batch(self.starts(np.arange(first, first + batch), seed, context), context)

    def learned(self, seed: int, step: int, micro_step: int, micro_steps: int, batch: int, context: int) -> int:
        """The number of targets in that batch."""
        return batch * context

    def starts(self, samples: np.ndarray, seed: int, context: int) -> np.ndarray:
        """Where the windows of these samples begin, int64: offset + permuted number * context, of the sample's
        epoch."""
        count = self.windows(context)
        slack = min(context, self.boundary - count * context)
        starts = np.empty(len(samples), dtype=np.int64)
        epochs, numbers = np.divmod(samples, count)
        for epoch in map(int, np.unique(epochs)):
            here = epochs == epoch
            cut = order.offset(slack, seed, epoch)
            starts[here] = cut + context * order.permutation(numbers[here], count, seed, epoch)
        return starts

    def val_batches(self, batch: int, context: int, max_tokens: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """The first max_tokens tokens of the validation split as consecutive windows, at least one: the same at every
        call. Of `world` processes each takes every world-th batch; the last batch may be smaller."""
        windows = (len(self.tokens) - self.boundary - 1) // context
        starts = self.boundary + np.arange(min(windows, max(1, max_tokens // context))) * context
        for i in range(rank * batch, len(starts), world * batch):
            yield self._batch(starts[i : i + batch], context)

    def _batch(self, starts: np.ndarray, context: int) -> Batch:
        rows = torch.from_numpy(np.stack([self.tokens.window(int(start), context + 1) for start in starts]))
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
