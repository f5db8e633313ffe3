"""Files that grow with a run, row by row, and that its user may have touched: rows of one's own, a line break, a cut.

A checkpoint knows their sizes, and a resumed run cuts them there. Where that place is none between two rows any more,
the rows themselves say what comes after the checkpoint; what is not a row of the run stays.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpt2c.files import write_atomically

SAMPLE_HEAD = re.compile(rb"^--- step (\d+) ---\n", re.MULTILINE)


class Part(NamedTuple):
    """A row or a sample with the step it is of, None if it is not the run's."""

    text: bytes
    step: float | None


Split = Callable[[bytes], Sequence[Part]]


def metrics_rows(text: bytes) -> list[Part]:
    """The lines of metrics.jsonl. One that was half written when the run was killed is of the last step."""
    lines = text.splitlines(keepends=True)
    return [Part(line, _half_written(line, b'{"step": ') or _step(line)) for line in lines]


def samples(text: bytes) -> list[Part]:
    """The samples of samples.txt."""
    heads = [*SAMPLE_HEAD.finditer(text)]
    ends = [head.start() for head in heads] + [len(text)]
    first = text[: ends[0]]
    parts = [Part(first, _half_written(first, b"--- step "))] if first else []
    return parts + [Part(text[h.start() : end], int(h[1])) for h, end in zip(heads, ends[1:], strict=True)]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl whose step, loss and val_loss are numbers; other lines are left out. Raises OSError."""
    rows = [_row(line) for line in path.read_bytes().splitlines()]
    return [row for row in rows if _is_number(row.get("step")) and all(_is_number(row[k]) for k in _LOSSES if k in row)]


def append(path: Path, text: str) -> None:
    """Add a row; what is there and does not end a line is ended first. A row that does not fit is taken back. Raises
    OSError."""
    with open(path, "ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            text = text if file.read(1) == b"\n" else "\n" + text
        contents = text.encode("utf-8", errors="replace")
        try:
            while contents:
                contents = contents[file.write(contents) :]
        except OSError:
            os.truncate(path, size)
            raise


def cut(path: Path, size: int | None, step: int, split: Split) -> None:
    """Take away what came after a checkpoint of this step, at which the file had this size, if it was there. Raises
    OSError."""
    text = path.read_bytes()
    if size is not None and _is_place(text, size, step, split):
        os.truncate(path, size)
        return
    kept = b"".join(part.text for part in split(text) if part.step is None or part.step <= step)
    if kept != text:
        write_atomically(path, kept)


def _is_place(text: bytes, size: int, step: int, split: Split) -> bool:
    """Whether the rows before `size` bytes are those up to the step, and all after it those that came later."""
    before, after = text[:size], split(text[size:])
    if len(before) < size or before[-1:] not in (b"", b"\n"):
        return False
    last = next((part.step for part in reversed(split(before)) if part.step is not None), 0)
    return last <= step and all(part.step is not None and (part.step > step or _is_resume(part)) for part in after)


def _is_resume(part: Part) -> bool:
    """Whether it is the event of a resume, the one thing that is written at a checkpoint's step after it."""
    return _row(part.text).get("event") == "resume"


def _half_written(text: bytes, begin: bytes) -> float | None:
    """A step after all others, if it is the beginning of a row or sample that has no end."""
    is_half = not text.endswith(b"\n") and (text.startswith(begin) or begin.startswith(text))
    return math.inf if is_half and not _row(text) else None


def _step(line: bytes) -> float | None:
    step = _row(line).get("step")
    return step if _is_number(step) else None


def _row(line: bytes) -> dict[str, Any]:
    """The JSON object of a line; an empty one if it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


_LOSSES = ("loss", "val_loss")
