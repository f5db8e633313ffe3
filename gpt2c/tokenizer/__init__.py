"""Text to token ids and back: bytes, GPT-2's byte-pair encoding, and such encodings of one's own or from elsewhere.
None needs the network."""

from __future__ import annotations

import functools
from pathlib import Path

from gpt2c.errors import UserError
from gpt2c.tokenizer.added import AddedTokens, base_of
from gpt2c.tokenizer.base import (
    END_OF_TEXT,
    ByteTokenizer,
    Facts,
    StreamDecoder,
    Tokenizer,
    decode,
    printable,
    prompt_ids,
    special_names,
)  # fmt: skip
from gpt2c.tokenizer.bpe import GPT2_PATTERN, BytePairTokenizer, merges, spell
from gpt2c.tokenizer.files import read_tokenizer
from gpt2c.tokenizer.gpt2 import GPT2Tokenizer
from gpt2c.tokenizer.library import LibraryTokenizer
from gpt2c.tokenizer.saving import save_tokenizer

NAMES = ("bytes", "gpt2")

__all__ = [
    "END_OF_TEXT", "GPT2_PATTERN", "NAMES", "AddedTokens", "BytePairTokenizer", "ByteTokenizer", "Facts",
    "GPT2Tokenizer", "LibraryTokenizer", "StreamDecoder", "Tokenizer", "base_of", "decode", "get_tokenizer", "is_own",
    "merges", "printable", "prompt_ids", "save_tokenizer", "special_names", "spell",
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
    """Whether its files are needed to know it."""
    plain = Facts(ends=tokenizer.facts.ends)  # a model's own files have these
    return tokenizer.name not in NAMES or tokenizer.facts != plain
