"""How a conversation becomes tokens.

    <|system|>TEXT<|end|> <|user|>TEXT<|end|> <|assistant|>TEXT<|end|> <|user|>TEXT<|end|> ...

without the spaces. The four names are single tokens after the vocabulary's own. A text is encoded as ordinary text,
whatever it says, so that nobody can write a turn of another's. The system's message may be missing; then user and
assistant take turns. The model learns what the assistant says, and the <|end|> after it.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2c.errors import UserError
from gpt2c.program import program
from gpt2c.tokenizer import END_OF_TEXT, AddedTokens, LibraryTokenizer, Tokenizer, base_of, get_tokenizer
from gpt2c.tokenizer.base import utf8
from gpt2c.tokenizer.description import has_files
from gpt2c.tokenizer.library import with_special

ROLES = ("system", "user", "assistant")
END = "<|end|>"
INVISIBLE = "ZC"  # Unicode's categories of white space, controls, and marks that join or order what stands beside them
TOKENS = (*(f"<|{role}|>" for role in ROLES), END)

# The same for Hugging Face's libraries and llama.cpp. They encode the spelled conversation as one text, in which a
# special token's name is that token: a message that holds one is refused there. `generation` marks what is learned.
_LEARNED = "{%- generation -%}", "{%- endgeneration -%}"
_MESSAGE = "{{- '<|assistant|>' -}}%s{{- message['content'] + '<|end|>' -}}%s"
_JINJA = (
    "{%%- set turn = namespace(roles=['system', 'user']) -%%}"
    "{%%- for message in messages -%%}"
    "{%%- if message['role'] not in turn.roles -%%}"
    "{{- raise_exception('found the role ' + message['role'] + ', expected ' + turn.roles[-1]) -}}"
    "{%%- endif -%%}"
    "{%%- for name in [" + ", ".join(f"'{name}'" for name in (*TOKENS, END_OF_TEXT)) + "] -%%}"
    "{%%- if name in message['content'] -%%}"
    "{{- raise_exception('a message holds ' + name + ', which is a special token') -}}"
    "{%%- endif -%%}"
    "{%%- endfor -%%}"
    "{%%- if message['role'] == 'assistant' -%%}%s{%%- else -%%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%%- endif -%%}"
    "{%%- set turn.roles = ['assistant'] if message['role'] == 'user' else ['user'] -%%}"
    "{%%- endfor -%%}"
    "{%%- if add_generation_prompt -%%}{{- '<|assistant|>' -}}{%%- endif -%%}"
)
CHAT_TEMPLATE = _JINJA % (_MESSAGE % _LEARNED)
PLAIN_CHAT_TEMPLATE = _JINJA % (_MESSAGE % ("", ""))  # Jinja's own syntax has no `generation`


class Encoded(NamedTuple):
    """ids: (n,) int64. learned: (n,) bool, those that the assistant writes, <|end|> included."""

    ids: np.ndarray
    learned: np.ndarray


class Template:
    """Conversations as ids of a tokenizer that has the four tokens.

    end: the id that ends a reply; ends: it, and others that no reply goes on after. first: the lowest id of the four.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end = tokenizer.special[END]
        self._opens = {role: tokenizer.special[f"<|{role}|>"] for role in ROLES}
        self.first = min(self.end, *self._opens.values())
        self.ends = frozenset((*tokenizer.special.values(), *tokenizer.ends))

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> np.ndarray:
        """int64 ids up to and including the token that opens the assistant's reply.

        Raises UserError, one sentence, unless the messages are whole, of the right roles, and the last is the user's.
        """
        check_messages(messages)
        if messages[-1]["role"] != "user":
            raise UserError(f"the last message has the role {messages[-1]['role']!r}, expected 'user'")
        return np.concatenate([self._encode(messages).ids, [self._opens["assistant"]]])

    def encode(self, messages: Sequence[Mapping[str, str]]) -> Encoded:
        """A whole conversation. Raises UserError as `prompt`, or if the assistant says nothing in it."""
        check_conversation(messages)
        return self._encode(messages)

    def _encode(self, messages: Sequence[Mapping[str, str]]) -> Encoded:
        ids, learned = [], []
        for message in messages:
            text = self.tokenizer.encode(message["content"])
            ids += [[self._opens[message["role"]]], text, [self.end]]
            learned += [[False], np.full(len(text) + 1, message["role"] == "assistant")]
        return Encoded(np.concatenate(ids).astype(np.int64), np.concatenate(learned).astype(bool))


def load_template(folder: Path) -> Template | None:
    """The template of the model in a folder; None if it has not learned to chat."""
    return template_of(get_tokenizer(str(folder))) if has_files(folder) else None


def template_of(tokenizer: Tokenizer) -> Template | None:
    """The template of a model's tokenizer; None if it has not learned to chat."""
    return Template(tokenizer) if set(TOKENS) <= tokenizer.special.keys() else None


def require_template(tokenizer: Tokenizer, model: str) -> Template:
    """The template of the model of that name; UserError if it has not learned to chat."""
    template = template_of(tokenizer)
    if template is None:
        raise UserError(
            f"{model} has not learned to chat: fine-tune it on conversations, {program()} sft --init {model}"
        )
    return template


def chat_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the four tokens, after any that it has been given before."""
    new = [name for name in TOKENS if name not in tokenizer.special]
    if isinstance(tokenizer, LibraryTokenizer):
        return with_special(tokenizer, new, CHAT_TEMPLATE)
    before = tokenizer.added if isinstance(tokenizer, AddedTokens) else ()
    grown = AddedTokens(base_of(tokenizer), (*before, *new))
    grown.end_of_text = tokenizer.end_of_text
    grown.facts = dataclasses.replace(tokenizer.facts, chat_template=CHAT_TEMPLATE)
    return grown


def check_conversation(messages: object) -> None:
    """As check_messages, and raises UserError if the assistant says nothing, or in one of its messages nothing that can
    be seen."""
    check_messages(messages)
    replies = [(i, message["content"]) for i, message in enumerate(messages, 1) if message["role"] == "assistant"]
    if not replies:
        raise UserError("no message has the role 'assistant', so there is nothing to learn")
    for i, content in replies:
        if not any(unicodedata.category(c)[0] not in INVISIBLE for c in content):
            raise UserError(
                f"message {i}, the assistant's, is {_short(content)}, expected a text that says something: the model "
                "would learn to say nothing"
            )


def check_messages(messages: object) -> None:
    """Raises UserError, one sentence, unless these are messages whose roles follow each other as in a conversation."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(f"the messages are {_short(messages)}, expected a list of at least one")
    expected: tuple[str, ...] = ("system", "user")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise UserError(f"message {i + 1} is {_short(message)}, expected an object with role and content")
        role, content = message.get("role"), message.get("content")
        if role not in expected:
            raise UserError(f"message {i + 1} has the role {role!r}, expected {' or '.join(map(repr, expected))}")
        if not isinstance(content, str):
            raise UserError(f"message {i + 1} has the content {_short(content)}, expected a text")
        try:
            utf8(content)
        except UserError as error:
            raise UserError(f"message {i + 1} cannot be encoded: {error}") from error
        expected = ("assistant",) if role == "user" else ("user",)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."
