"""Documents packed in one row, of which none sees another: for each token the column where its document begins.

starts (B, T) int64 with 0 <= starts[b, t] <= t, never falling along a row. Token t sees the tokens starts[b, t] to t,
and its position is t - starts[b, t]. (A row's padding is one document more.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2c.ops._library import check_integers, check_shape


def check_starts(op: str, starts: Tensor, shape: tuple[int, int], like: Tensor) -> None:
    """Dtype, device and shape: all but the values."""
    check_integers(op, "starts", starts, like)
    check_shape(op, "starts", starts, shape)


def checked_starts(op: str, starts: Tensor | None) -> Tensor | None:
    """The same, contiguous. Raises ValueError for values other than the above; on CUDA, which is not waited for, they
    fail an assertion on the device instead."""
    if starts is None:
        return None
    columns = torch.arange(starts.shape[1], device=starts.device)
    before = torch.nn.functional.pad(starts[:, :-1], (1, 0))
    wrong = (starts < before) | (starts > columns)
    if starts.device.type != "cpu":
        torch._assert_async(~wrong.any(), f"{op}: a document's start is before the last one's or after its token")
    elif wrong.any():
        b, t = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"{op}: starts[{b}, {t}] is {starts[b, t].item()}, expected {before[b, t].item()} (the start before it) to"
            f" {t} (its own column)"
        )
    return starts.contiguous()


def positions_of(starts: Tensor) -> Tensor:
    """Of each token in its document."""
    return torch.arange(starts.shape[1], device=starts.device) - starts
