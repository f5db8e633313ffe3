"""A model by any name that a command takes, with the tokenizer that it was trained with."""

from __future__ import annotations

from pathlib import Path

from gpt2c import checkpoint
from gpt2c.errors import UserError
from gpt2c.model import GPT2
from gpt2c.tokenizer import Tokenizer, get_tokenizer


def load_model(name: str) -> tuple[GPT2, Tokenizer, Path]:
    """The model, in eval mode, its tokenizer, and the folder that they came from.

    name: a run (its best checkpoint is taken), a checkpoint, or any GPT-2 in Hugging Face's format or on its hub.
    Raises UserError, one sentence, if there is no such model, or none of our tokenizers has its vocabulary.
    """
    folder = checkpoint.resolve(name)
    model = GPT2.from_pretrained(folder)
    return model, tokenizer_of(Path(folder), model), Path(folder)


def tokenizer_of(folder: Path, model: GPT2) -> Tokenizer:
    """The tokenizer a checkpoint was trained with; for a foreign model the one that has its vocabulary size."""
    if (folder / checkpoint.RECORD).exists():
        tokenizer = get_tokenizer(checkpoint.read_record(folder).tokenizer)
        if tokenizer.vocab_size == model.config.vocab_size:
            return tokenizer
    for name in ("gpt2", "bytes"):
        if get_tokenizer(name).vocab_size == model.config.vocab_size:
            return get_tokenizer(name)
    raise UserError(
        f"{folder} has a vocabulary of {model.config.vocab_size}, expected that of a known tokenizer: 50257 (gpt2) or "
        "257 (bytes)"
    )
