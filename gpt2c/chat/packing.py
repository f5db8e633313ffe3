"""Several conversations in a row, so that little of a batch is padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from gpt2c.chat.template import Encoded
from gpt2c.data.dataset import IGNORED

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def pack(lengths: Sequence[int], columns: int) -> list[list[int]]:
    """Numbers of conversations by row, so that no row is longer than `columns`, which no conversation is either.

    Best fit, decreasing: each, from the longest to the shortest, goes where it leaves the least room; needs at most
    11/9 of the fewest rows, and 4 (Johnson et al., "Worst-case performance bounds for simple one-dimensional packing
    algorithms", SIAM J. Comput. 3, 1974).
    """
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = defaultdict(list)  # columns left -> rows
    rooms: list[int] = []  # its keys, sorted
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(rooms, lengths[i])
        if at == len(rooms):
            rows.append([])
            row, room = len(rows) - 1, columns
        else:
            room = rooms[at]
            row = with_room[room].pop()
            if not with_room[room]:
                del rooms[at]
        rows[row].append(i)
        left = room - lengths[i]
        if left and not with_room[left]:
            insort(rooms, left)
        if left:
            with_room[left].append(row)
    return rows


class Packed:
    """Conversations packed into rows of `columns`; `learned[i]`: the number of targets in row i.

    A conversation of n ids takes n - 1 columns: what is seen, and what comes next.
    """

    def __init__(self, encoded: Sequence[Encoded], columns: int) -> None:
        self.encoded, self.columns = encoded, columns
        self.rows = pack([len(ids) - 1 for ids, _ in encoded], columns)
        self.learned = np.array([sum(int(encoded[i].learned[1:].sum()) for i in row) for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, numbers: Sequence[int]) -> Rows:
        """idx, targets and starts of these rows, int64 (len(numbers), columns) each; see GPT2.forward.

        What is left of a row is a document of its own, of the id 0, of which nothing is learned.
        """
        idx = np.zeros((len(numbers), self.columns), dtype=np.int64)
        targets = np.full_like(idx, IGNORED)
        starts = np.zeros_like(idx)
        for r, number in enumerate(numbers):
            at = 0
            for i in self.rows[number]:
                ids, learned = self.encoded[i]
                to = at + len(ids) - 1
                idx[r, at:to] = ids[:-1]
                targets[r, at:to] = np.where(learned[1:], ids[1:].astype(np.int64), IGNORED)
                starts[r, at:to] = at
                at = to
            starts[r, at:] = at
        return torch.from_numpy(idx), torch.from_numpy(targets), torch.from_numpy(starts)
