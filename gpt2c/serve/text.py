"""A text that is written token by token, up to the first of some stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from gpt2c.tokenizer import StreamDecoder, Tokenizer

LONGEST = 4  # bytes of a character, and so tokens


class TextWriter:
    """`feed` it ids, then `finish` it; both give the text that is certain by then.

    What may be the beginning of a stop string is held back until it is known not to be one. stopped: one has come; it
    and what follows is not given. before: the ids that the text goes on after, perhaps within a character.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], before: Sequence[int] = ()) -> None:
        self._decoder = StreamDecoder(tokenizer)
        for id in before[-LONGEST:]:
            self._decoder.feed(id)
        self._stops = stops
        self._held = ""
        self.stopped = False

    def feed(self, id: int) -> str:
        return self._give(self._decoder.feed(id))

    def finish(self) -> str:
        text = self._give(self._decoder.finish())
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _give(self, text: str) -> str:
        if self.stopped:
            return ""
        held = self._held + text
        found = [at for at in (held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            return held[: min(found)]
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop`, and more, begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def spelled(tokenizer: Tokenizer, id: int) -> str:
    """A token by itself; one that is no UTF-8, a part of a character say, as its bytes: \\xe2\\x82."""
    raw = tokenizer.decode_bytes([id])
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in raw)
