"""Text to token ids and back: bytes, GPT-2's byte-pair encoding, and such encodings of one's own. All are lossless and
need no network."""

from __future__ import annotations

import functools
from pathlib import Path

from gpt2c.errors import UserError
from gpt2c.tokenizer.added import AddedTokens, base_of
from gpt2c.tokenizer.base import END_OF_TEXT, ByteTokenizer, StreamDecoder, Tokenizer, decode, printable
from gpt2c.tokenizer.bpe import GPT2_PATTERN, BytePairTokenizer, merges, spell
from gpt2c.tokenizer.files import read_tokenizer, save_tokenizer
from gpt2c.tokenizer.gpt2 import GPT2Tokenizer

NAMES = ("bytes", "gpt2")

__all__ = [
    "END_OF_TEXT", "GPT2_PATTERN", "NAMES", "AddedTokens", "BytePairTokenizer", "ByteTokenizer", "GPT2Tokenizer",
    "StreamDecoder", "Tokenizer", "base_of", "decode", "get_tokenizer", "is_own", "merges", "printable",
    "save_tokenizer", "spell",
]  # fmt: skip


def get_tokenizer(name: str) -> Tokenizer:
    """The tokenizer called `name`: "bytes", "gpt2", or the folder of one's own; UserError for any other name."""
    if name in NAMES:
        return _known(name)
    if Path(name).is_dir():
        return read_tokenizer(Path(name))
    raise UserError(
        f"unknown tokenizer {name!r}: expected one of {', '.join(NAMES)}, or the folder of a tokenizer of your own "
        "(gpt2c tokenizer train)"
    )


@functools.cache  # not what a folder holds, which may be another tokenizer the next time
def _known(name: str) -> Tokenizer:
    return ByteTokenizer() if name == "bytes" else GPT2Tokenizer()


def is_own(tokenizer: Tokenizer) -> bool:
    """Whether it is known by its files alone."""
    return tokenizer.name not in NAMES
