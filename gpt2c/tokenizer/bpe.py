"""Byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019, section 2.2), run by tiktoken.

A text is cut by GPT-2's regular expression; in each piece, which begins as bytes, the adjacent pair whose union has the
lowest id is merged, again and again. So ids are in the order of the merges, and the merges follow from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import tiktoken

from gpt2c.tokenizer.base import END_OF_TEXT, Tokenizer, checked, utf8

# The regular expression of the original GPT-2 release (openai/gpt-2, src/encoder.py).
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
MOST_IDS = 65536  # ids are kept in 16 bits
LONGEST_SPACE = 500_000  # a million characters of white space in a row are more than the expression's stack holds

# The files spell each byte as one printable character: itself where it is printable, else 256, 257, ... in turn.
_PRINTABLE = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
_SPELLING = {b: chr(b) for b in _PRINTABLE}
_SPELLING |= {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in _SPELLING)}
_BYTES = {character: byte for byte, character in _SPELLING.items()}


class BytePairTokenizer(Tokenizer):
    """Tokens in the order of their ids, all 256 single bytes among them, then the end-of-text id.

    name: what get_tokenizer finds it by.
    """

    def __init__(self, name: str, tokens: Sequence[bytes]) -> None:
        self.name = name
        self.tokens = list(tokens)
        self.end_of_text = len(tokens)
        self.vocab_size = len(tokens) + 1
        # Without a special token tiktoken looks for one at each character of a text, which takes most of the time.
        self._encoding = tiktoken.Encoding(
            name=name,
            pat_str=GPT2_PATTERN,
            mergeable_ranks={token: i for i, token in enumerate(tokens)},
            special_tokens={END_OF_TEXT: self.end_of_text},
            explicit_n_vocab=self.vocab_size,
        )

    def encode(self, text: str) -> np.ndarray:
        utf8(text)
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=()).astype(np.uint16)
        except ValueError:
            parts = _cut_long_spaces(text)
            if len(parts) == 1:
                raise
            return np.concatenate([self.encode(part) for part in parts])

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self._encoding.decode_bytes(list(checked(ids, self.vocab_size)))


def _cut_long_spaces(text: str) -> list[str]:
    """The text in parts, cut within white space of more than LONGEST_SPACE characters."""
    spaces = re.finditer(r"\s+", text)
    cuts = [cut for space in spaces for cut in range(space.start() + LONGEST_SPACE, space.end(), LONGEST_SPACE)]
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def spell(token: bytes) -> str:
    """A token as GPT-2's files spell it: a space is `\u0120`."""
    return "".join(_SPELLING[byte] for byte in token)


def unspell(token: str) -> bytes:
    """The bytes of a token in a file; KeyError for a character that spells none."""
    return bytes(_BYTES[character] for character in token)


def merges(tokens: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The two tokens that each token of more than one byte is merged of, in the order of the ids: what byte-pair
    encoding by lower ids leaves of it. ValueError for a token that they cannot make."""
    ranks = {token: i for i, token in enumerate(tokens)}
    found = []
    for i, token in enumerate(tokens):
        parts = [bytes((byte,)) for byte in token]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, i) for a, b in zip(parts, parts[1:], strict=False)]
            at = pairs.index(min(pairs))
            if pairs[at] >= i:
                raise ValueError(f"the token {i}, {spell(token)!r}, is not a union of two tokens before it")
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            found.append((parts[0], parts[1]))
    return found
