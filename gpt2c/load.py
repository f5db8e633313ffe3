"""A model by any name that a command takes, with the tokenizer that it was trained with."""

from __future__ import annotations

from pathlib import Path

from gpt2c import checkpoint, pretrained
from gpt2c.errors import UserError
from gpt2c.model import GPT2
from gpt2c.tokenizer import NAMES, AddedTokens, Tokenizer, base_of, get_tokenizer
from gpt2c.tokenizer.files import TOKENIZER


def load_model(name: str) -> tuple[GPT2, Tokenizer, Path]:
    """The model, in eval mode, its tokenizer, and the folder that they came from.

    name: a run (its best checkpoint is taken), a checkpoint, or any GPT-2 in Hugging Face's format or on its hub.
    Raises UserError, one sentence, if there is no such model, it is damaged, or no tokenizer has its vocabulary.
    """
    folder = pretrained.find(checkpoint.resolve(name))
    if (folder / checkpoint.RECORD).exists():
        checkpoint.verify(folder)
    model = GPT2.from_pretrained(folder)
    return model, tokenizer_of(folder, model.config.vocab_size), folder


def tokenizer_of(folder: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer in a model's folder, else the one that a checkpoint names, else the one of that many ids."""
    if (folder / TOKENIZER).exists():
        found = get_tokenizer(str(folder))
        if found.vocab_size != vocab_size:
            raise UserError(
                f"{folder / TOKENIZER} has {found.vocab_size} ids, expected {vocab_size}, the model's vocabulary"
            )
        base = next((known for known in map(get_tokenizer, NAMES) if _same(known, base_of(found))), base_of(found))
        return AddedTokens(base, found.added, found.chat_template) if isinstance(found, AddedTokens) else base
    if (folder / checkpoint.RECORD).exists():
        tokenizer = get_tokenizer(checkpoint.read_record(folder).tokenizer)
        if tokenizer.vocab_size == vocab_size:
            return tokenizer
    for known in map(get_tokenizer, NAMES):
        if known.vocab_size == vocab_size:
            return known
    raise UserError(
        f"{folder} has a vocabulary of {vocab_size}, expected that of a known tokenizer: 50257 (gpt2), 257 (bytes), or "
        f"that of a {TOKENIZER} in the folder"
    )


def _same(a: Tokenizer, b: Tokenizer) -> bool:
    ids = range(a.vocab_size)
    return a.vocab_size == b.vocab_size and all(a.decode_bytes([i]) == b.decode_bytes([i]) for i in ids)
