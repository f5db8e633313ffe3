"""Numbers as words."""

from __future__ import annotations


def counted(count: int, thing: str) -> str:
    """`1 document`, `2,000 documents`."""
    return f"{count:,} {thing if count == 1 else thing + 's'}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`: how long something takes."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
