"""A tokenizer as its tokenizer.json says, run by the library `tokenizers`: whatever is not plainly GPT-2's kind."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gpt2c.errors import UserError, reason
from gpt2c.tokenizer.added import require_room
from gpt2c.tokenizer.base import END_OF_TEXT, Facts, Tokenizer, checked, utf8
from gpt2c.tokenizer.bpe import unspell
from gpt2c.tokenizer.description import special_record


class LibraryTokenizer(Tokenizer):
    """description: what tokenizer.json holds. Ids are those of the library, ordinary added tokens, normalisers and what
    is put around a text included; a text is never cut or padded. A special token's name in a text is ordinary text.

    Raises ValueError, in words, for what is not byte-level BPE, and UserError where the library is missing.
    """

    def __init__(self, name: str, description: Mapping[str, Any], facts: Facts) -> None:
        self.name, self.description, self.facts = name, description, facts
        _check(description)
        self._library = _load(description)
        self._added = {token["id"]: token["content"] for token in description.get("added_tokens") or []}
        moved = [name for id, name in self._added.items() if self._library.token_to_id(name) != id]
        vocab = sorted(self._library.get_vocab(with_added_tokens=True).values())
        if moved or vocab != list(range(len(vocab))):
            raise ValueError(f"its ids are not 0 to {len(vocab) - 1}, each once")
        self.vocab_size = len(vocab)
        require_room(self, 0)
        self.end_of_text = self.special[facts.roles.get("eos_token", END_OF_TEXT)]
        inner = self._library.encode("a", add_special_tokens=False).ids
        mask = self._library.encode("a").special_tokens_mask
        ids = self._library.encode("a").ids
        at = mask.index(0) if 0 in mask else len(mask)
        if ids[at : at + len(inner)] != inner:
            raise ValueError("its post-processor does more than to put tokens around a text")
        self.begin, self.finish = tuple(ids[:at]), tuple(ids[at + len(inner) :])

    @functools.cached_property
    def special(self) -> Mapping[str, int]:
        return {t["content"]: t["id"] for t in self.description.get("added_tokens") or [] if t.get("special")}

    @functools.cached_property
    def rules(self) -> str:
        """A hash of all that decides which ids a text has, besides the tokens themselves."""
        ordinary = [token for token in self.description.get("added_tokens") or [] if not token.get("special")]
        parts = [self.description.get(name) for name in ("normalizer", "pre_tokenizer", "model")]
        return hashlib.sha256(json.dumps([*parts, ordinary], sort_keys=True).encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        utf8(text)
        return np.array(self._library.encode(text, add_special_tokens=False).ids, dtype=np.uint16)

    def encode_special(self, text: str) -> np.ndarray:
        self._library.encode_special_tokens = False
        try:
            return self.encode(text)
        finally:
            self._library.encode_special_tokens = True

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(map(self._token, checked(ids, self.vocab_size)))

    def _token(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        spelled = self._library.id_to_token(token)
        try:
            return unspell(spelled)
        except KeyError:  # no spelling of bytes, as the library's own decoder has it
            return spelled.encode()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_library": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_library": _load(state["description"])}


def with_special(tokenizer: LibraryTokenizer, names: Sequence[str], chat_template: str) -> LibraryTokenizer:
    """The tokenizer whose ids go on with one for each of the names. UserError for more ids than 16 bits hold."""
    require_room(tokenizer, len(names))
    before = list(tokenizer.description.get("added_tokens") or [])
    new = [special_record(tokenizer.vocab_size + i, name) for i, name in enumerate(names)]
    facts = Facts(tokenizer.facts.roles, tokenizer.facts.flags, chat_template, tokenizer.facts.ends)
    return LibraryTokenizer(tokenizer.name, {**tokenizer.description, "added_tokens": before + new}, facts)


def _check(description: Mapping[str, Any]) -> None:
    """Raises ValueError for what cannot be followed: the library would take it, but draw, or spell bytes otherwise."""
    model = description["model"]
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"its model is {model['type']}")
    for name in ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ValueError(f"its model has {name} {model[name]!r}")
    decoder = description.get("decoder") or {}
    if decoder.get("type") != "ByteLevel":
        raise ValueError(f"its decoder is {decoder.get('type', 'missing')}")


def _load(description: Mapping[str, Any]) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            "a tokenizer.json with more than GPT-2's kind has needs the package tokenizers: "
            'pip install "gpt2c[tokenizers]"'
        ) from error
    try:
        library = tokenizers.Tokenizer.from_str(json.dumps({**description, "truncation": None, "padding": None}))
    except Exception as error:  # of the library, which knows no other
        raise ValueError(f"the package tokenizers cannot read it: {reason(error)}") from error
    library.encode_special_tokens = True
    return library
