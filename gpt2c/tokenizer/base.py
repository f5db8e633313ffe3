"""What a tokenizer is, the simplest one, and text from ids, all at once or as they come."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from gpt2c.errors import UserError

END_OF_TEXT = "<|endoftext|>"


class Tokenizer(Protocol):
    """`decode(encode(text)) == text` for every text that UTF-8 can hold. `<|endoftext|>` in a text is ordinary text."""

    name: str
    vocab_size: int
    end_of_text: int

    def encode(self, text: str) -> np.ndarray:
        """uint16 ids of shape (number of tokens,). Raises UserError for a text that UTF-8 cannot hold."""
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes behind the ids. Raises UserError for an id outside the vocabulary."""
        ...


class ByteTokenizer:
    """The 256 bytes of UTF-8, and one id (256) for the end of a text."""

    name = "bytes"
    vocab_size = 257
    end_of_text = 256

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(utf8(text), dtype=np.uint8).astype(np.uint16)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(
            END_OF_TEXT.encode() if i == self.end_of_text else bytes((i,)) for i in checked(ids, self.vocab_size)
        )


def decode(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of the ids; bytes that are not UTF-8 become U+FFFD, as a model may write any bytes."""
    return tokenizer.decode_bytes(ids).decode("utf-8", errors="replace")


def printable(text: str) -> str:
    """`text` for a terminal: control characters, which could move the cursor or worse, become U+FFFD, and a line's end
    of Windows one of Unix; of a piece of text, its last carriage return is left out, as a line feed may follow."""
    text = text.removesuffix("\r").replace("\r\n", "\n")
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else "\ufffd" for c in text)


class StreamDecoder:
    """Decodes ids as they come. A character split over several ids is given when its last byte has come."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """The text that became complete with this id, possibly empty."""
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def finish(self) -> str:
        """What is left of an unfinished character: U+FFFD, or nothing."""
        return self._decoder.decode(b"", final=True)


def utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text is not valid UTF-8: character {error.start} is {ascii(text[error.start])}, half of a character"
        ) from error


def checked(ids: Iterable[int], vocab_size: int) -> Iterable[int]:
    for token in ids:
        token = int(token)
        if not 0 <= token < vocab_size:
            raise UserError(f"token id {token} is outside the tokenizer's vocabulary: expected 0 to {vocab_size - 1}")
        yield token
