"""What a tokenizer is, the simplest one, and text from ids, all at once or as they come."""

from __future__ import annotations

import codecs
import copy
import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from gpt2c.errors import UserError

END_OF_TEXT = "<|endoftext|>"
PLAIN_ROLES = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
Own = TypeVar("Own", bound="Tokenizer")


@dataclass(frozen=True)
class Facts:
    """What files say of a vocabulary besides its tokens.

    roles: names of special tokens by what they are for, `eos_token` and the like, as tokenizer_config.json has them.
    flags: those of added tokens that are not as usual, by name: `normalized` and the like. chat_template: how
    conversations are spelled, in the Jinja of Hugging Face's libraries, empty if nothing says. ends: the model's own
    ids that end a text, empty if it names none.
    """

    roles: Mapping[str, Any] = field(default_factory=lambda: dict(PLAIN_ROLES))
    flags: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    chat_template: str = ""
    ends: tuple[int, ...] = ()


class Tokenizer:
    """`decode(encode(text)) == text` for every text that UTF-8 can hold, unless its files change texts. The name of a
    special token in a text, `<|endoftext|>` say, is ordinary text.

    end_of_text: the id that stands between texts. special: the ids of the special tokens by their names. begin, finish:
    ids that the files put before and after each text.
    """

    name: str
    vocab_size: int
    end_of_text: int
    begin: tuple[int, ...] = ()
    finish: tuple[int, ...] = ()
    rules: str = ""  # of its files, where they decide more than tokens in the order of their merges do
    facts = Facts()

    def encode(self, text: str) -> np.ndarray:
        """uint16 ids of shape (number of tokens,). Raises UserError for a text that UTF-8 cannot hold."""
        raise NotImplementedError

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes behind the ids. Raises UserError for an id outside the vocabulary."""
        raise NotImplementedError

    @property
    def special(self) -> Mapping[str, int]:
        return {END_OF_TEXT: self.end_of_text}

    @property
    def chat_template(self) -> str:
        return self.facts.chat_template

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids after which a model's text has ended: those that the model names, else end_of_text."""
        return self.facts.ends or (self.end_of_text,)

    @property
    def start(self) -> int:
        """The id that a text from nothing begins with."""
        return self.special.get(self.facts.roles.get("bos_token"), self.end_of_text)

    @property
    def separator(self) -> np.ndarray:
        """uint16 ids between two texts."""
        around = (*self.finish, *self.begin)
        end = () if self.end_of_text in around else (self.end_of_text,)
        return np.array((*self.finish, *end, *self.begin), dtype=np.uint16)

    def encode_special(self, text: str) -> np.ndarray:
        """As `encode`, but the name of a special token is that token."""
        names = sorted(self.special, key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, names)) + ")", text)
        ids = [[self.special[part]] if part in self.special else self.encode(part) for part in parts]
        return np.concatenate([np.empty(0, np.uint16), *ids]).astype(np.uint16)

    def with_facts(self: Own, **changes: Any) -> Own:
        """The same with some of its facts changed."""
        other = copy.copy(self)
        other.facts = dataclasses.replace(self.facts, **changes)
        return other


class ByteTokenizer(Tokenizer):
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


def prompt_ids(tokenizer: Tokenizer, text: str, special: bool = False) -> np.ndarray:
    """int64 ids that a model goes on from: the text's, with what the tokenizer's files put around it; never none.

    special: names of special tokens in the text are these tokens.
    """
    ids = tokenizer.encode_special(text) if special else tokenizer.encode(text)
    whole = np.concatenate([tokenizer.begin, ids, tokenizer.finish]).astype(np.int64)
    return whole if len(whole) else np.array([tokenizer.start], dtype=np.int64)


def special_names(tokenizer: Tokenizer, text: str) -> list[str]:
    """The names of special tokens that are in a text."""
    return [name for name in tokenizer.special if name in text]


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
