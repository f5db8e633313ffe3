"""Generated text on the standard output."""

from __future__ import annotations

import sys

from gpt2c.tokenizer import printable


def show(text: str) -> None:
    """Print a piece of text at once; a terminal gets no control characters from a model."""
    print(printable(text) if sys.stdout.isatty() else text, end="", flush=True)
