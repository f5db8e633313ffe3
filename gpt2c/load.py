"""A model by any name that a command takes, with the tokenizer that it was trained with."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

from gpt2c import checkpoint, pretrained
from gpt2c.errors import UserError
from gpt2c.model import GPT2
from gpt2c.tokenizer import NAMES, AddedTokens, Tokenizer, base_of, decode, get_tokenizer
from gpt2c.tokenizer.description import TOKENIZER, has_files
from gpt2c.tokenizer.model_ids import model_ids
from gpt2c.tokenizer.others import require_unsaid
from gpt2c.vocabulary import cut, grow
from gpt2c.words import counted

PADDINGS = (64, 128)  # multiples that rows of an embedding are rounded up to


def load_model(name: str) -> tuple[GPT2, Tokenizer, Path]:
    """The model, in eval mode, its tokenizer, and the folder that they came from.

    name: a run (its best checkpoint is taken), a checkpoint, or any GPT-2 in Hugging Face's format or on its hub.
    Rows of the embedding that the tokenizer has no ids for are cut off, with a note. Raises UserError, one sentence, if
    there is no such model, it is damaged, or no tokenizer has its vocabulary.
    """
    folder = pretrained.find(checkpoint.resolve(name))
    if (folder / checkpoint.RECORD).exists():
        checkpoint.verify(folder)
    model = GPT2.from_pretrained(folder)
    return model, fit_tokenizer(model, folder), folder


def fit_tokenizer(model: GPT2, folder: Path) -> Tokenizer:
    """As tokenizer_of; the model's padding is cut off, in place."""
    tokenizer = tokenizer_of(folder, model.config.vocab_size)
    if model.config.vocab_size > tokenizer.vocab_size:
        cut(model, tokenizer.vocab_size)
    return tokenizer


def extend(model: GPT2, tokenizer: Tokenizer) -> None:
    """Give the model a row for each id of the tokenizer, in place, with a note where it lacks some: where the two are
    written down together."""
    if model.config.vocab_size < tokenizer.vocab_size:
        missing = tokenizer.vocab_size - model.config.vocab_size
        warnings.warn(f"the vocabulary is extended by {counted(missing, 'row')}, the mean of the others", stacklevel=1)
        grow(model, tokenizer.vocab_size, seed=0)


def tokenizer_of(folder: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer in a model's folder, else the one that a checkpoint names, else the known one of that many ids.

    vocab_size: the rows of the model's embedding. There is a note where they are more or fewer than the ids, and where
    nothing says which tokenizer is the model's.
    """
    found = _tokenizer_of(folder, vocab_size)
    _tell_difference(folder, found, vocab_size)
    ends = model_ids(folder, min(found.vocab_size, vocab_size)).ends
    return found if ends in ((), (found.end_of_text,)) else found.with_facts(ends=ends)


def _tokenizer_of(folder: Path, vocab_size: int) -> Tokenizer:
    if has_files(folder):
        return _by_its_name(get_tokenizer(str(folder)))
    if (folder / checkpoint.RECORD).exists():
        return get_tokenizer(checkpoint.read_record(folder).tokenizer)
    for known in map(get_tokenizer, NAMES):
        if vocab_size in (known.vocab_size, *(-(-known.vocab_size // n) * n for n in PADDINGS)):
            require_unsaid(folder, known.name)
            warnings.warn(
                f"{folder} has no tokenizer's files: from its vocabulary of {vocab_size} the tokenizer {known.name} "
                "is assumed",
                stacklevel=1,
            )
            return known
    raise UserError(
        f"{folder} has a vocabulary of {vocab_size}, expected that of a known tokenizer: 50257 (gpt2), 257 (bytes), or "
        f"that of a {TOKENIZER} in the folder"
    )


def _by_its_name(found: Tokenizer) -> Tokenizer:
    """A tokenizer from files; where these hold the vocabulary of a known one, it is run as that one."""
    base = next((known for known in map(get_tokenizer, NAMES) if _same(known, base_of(found))), None)
    if base is None:
        return found
    if isinstance(found, AddedTokens):
        by_name: Tokenizer = AddedTokens(base, found.added)
        by_name.end_of_text = found.end_of_text
    elif found.end_of_text != base.end_of_text:
        return found
    else:
        by_name = base
    return by_name.with_facts(**vars(found.facts))


def _tell_difference(folder: Path, tokenizer: Tokenizer, rows: int) -> None:
    ids = tokenizer.vocab_size
    if rows > ids:
        warnings.warn(
            f"{folder} has {rows} rows of the embedding for the {ids} ids of its tokenizer: what is "
            f"beyond, {counted(rows - ids, 'row')}, is taken for padding and cut off",
            stacklevel=1,
        )
    elif rows < ids:
        names = ", ".join(decode(tokenizer, [id]) for id in range(rows, min(ids, rows + 3)))
        warnings.warn(
            f"{folder} has {rows} rows of the embedding for the {ids} ids of its tokenizer: the model knows "
            f"none of the last {ids - rows}, {names}{', ...' if ids - rows > 3 else ''}",
            stacklevel=1,
        )


def require_rows(model: GPT2, tokenizer: Tokenizer, ids: Iterable[int]) -> None:
    """Raises UserError for an id that the model has no row for."""
    unknown = next((id for id in map(int, ids) if id >= model.config.vocab_size), None)
    if unknown is not None:
        raise UserError(
            f"the text holds {decode(tokenizer, [unknown])!r}, the id {unknown}, but the model knows the ids 0 to "
            f"{model.config.vocab_size - 1} alone"
        )


def _same(a: Tokenizer, b: Tokenizer) -> bool:
    if a.vocab_size != b.vocab_size or a.rules != b.rules:
        return False
    return all(a.decode_bytes([i]) == b.decode_bytes([i]) for i in range(a.vocab_size))
