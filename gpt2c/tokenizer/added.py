"""Special tokens after a tokenizer's own: no text is encoded to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gpt2c.errors import UserError
from gpt2c.tokenizer.base import Facts, Tokenizer, checked
from gpt2c.tokenizer.bpe import MOST_IDS


class AddedTokens(Tokenizer):
    """The tokenizer `base`, whose ids go on with one for each name in `added`.

    In a text such a name is ordinary text, as `<|endoftext|>` is. chat_template: how conversations are spelled with
    them, in the Jinja of Hugging Face's libraries; empty if they are for something else.
    Raises UserError for more ids than 16 bits hold.
    """

    def __init__(self, base: Tokenizer, added: Sequence[str], chat_template: str = "") -> None:
        self.base, self.added, self.facts = base, tuple(added), Facts(chat_template=chat_template)
        self.name = f"{base.name} and {len(self.added)} added tokens"
        self.end_of_text = base.end_of_text
        self.vocab_size = base.vocab_size + len(self.added)
        require_room(base, len(self.added))

    @property
    def special(self) -> Mapping[str, int]:
        return {**self.base.special, **{name: self.base.vocab_size + i for i, name in enumerate(self.added)}}

    def encode(self, text: str) -> np.ndarray:
        return self.base.encode(text)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(map(self._token, checked(ids, self.vocab_size)))

    def _token(self, token: int) -> bytes:
        number = token - self.base.vocab_size
        return self.base.decode_bytes([token]) if number < 0 else self.added[number].encode()


def require_room(tokenizer: Tokenizer, count: int) -> None:
    """Raises UserError unless `count` ids can be added."""
    if tokenizer.vocab_size + count > MOST_IDS:
        raise UserError(
            f"the tokenizer {tokenizer.name} has {tokenizer.vocab_size} ids, expected at most {MOST_IDS - count}, "
            f"so that {count} can be added"
        )


def base_of(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without added tokens, which encodes every text alike."""
    return tokenizer.base if isinstance(tokenizer, AddedTokens) else tokenizer
