"""A tokenizer's files as Hugging Face's libraries have them: AutoTokenizer loads the folder.

tokenizer.json                          everything, for the library `tokenizers`
tokenizer_config.json                   the class, what special tokens are for, and how to chat, for transformers
vocab.json, merges.txt                  the files of GPT-2's own release
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2c.files import write_atomically, writing
from gpt2c.tokenizer.added import AddedTokens, base_of
from gpt2c.tokenizer.base import END_OF_TEXT, Tokenizer
from gpt2c.tokenizer.bpe import merges, spell
from gpt2c.tokenizer.description import MERGES, TOKENIZER, TOKENIZER_CONFIG, VOCAB, describe, special_record
from gpt2c.tokenizer.library import LibraryTokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, longest: int | None = None) -> None:
    """Write the files into `folder`; `longest`: the context of the model that they are for, in tokens.

    In these libraries the name of a special token in a text is this token; here it is ordinary text. UserError if they
    cannot be written.
    """
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest or 10**9,
        "clean_up_tokenization_spaces": False,
        **tokenizer.facts.roles,
    }
    if tokenizer.chat_template:
        config["chat_template"] = tokenizer.chat_template
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in {**_vocabulary_files(tokenizer), TOKENIZER_CONFIG: _json(config)}.items():
            write_atomically(folder / name, text)


def vocabulary(tokenizer: Tokenizer) -> Mapping[str, Any]:
    """What tokenizer.json holds of it."""
    if isinstance(tokenizer, LibraryTokenizer):
        return tokenizer.description
    base = base_of(tokenizer)
    tokens = tuple(base.decode_bytes([i]) for i in range(base.vocab_size - 1))
    added = (END_OF_TEXT, *(tokenizer.added if isinstance(tokenizer, AddedTokens) else ()))
    flags = tuple((name, tuple(tokenizer.facts.flags.get(name, {}).items())) for name in added)
    return _plain(tokens, flags)


def _vocabulary_files(tokenizer: Tokenizer) -> Mapping[str, bytes]:
    """The other files' contents by their names."""
    description = vocabulary(tokenizer)
    files = {TOKENIZER: _json(description)}
    if not isinstance(tokenizer, LibraryTokenizer):  # of others these two files do not say enough
        model = description["model"]
        lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
        files |= {VOCAB: _json(model["vocab"]), MERGES: ("\n".join(lines) + "\n").encode()}
    return files


@functools.lru_cache(maxsize=1)
def _plain(tokens: tuple[bytes, ...], added: tuple[tuple[str, tuple[tuple[str, bool], ...]], ...]) -> dict[str, Any]:
    """Kept, since each checkpoint of a run has the same, and that of GPT-2's vocabulary takes two seconds. added: the
    special tokens, which come after `tokens`, with their flags."""
    vocab = {**{spell(token): i for i, token in enumerate(tokens)}, END_OF_TEXT: len(tokens)}
    pairs = [[spell(left), spell(right)] for left, right in merges(tokens)]
    records = [special_record(len(tokens) + i, name, dict(flags)) for i, (name, flags) in enumerate(added)]
    return describe(vocab, pairs, records)


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()
