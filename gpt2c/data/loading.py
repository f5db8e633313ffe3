"""From what the user names to a Dataset: texts are tokenised, shards opened, and the validation split found."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from gpt2c.data import manifest
from gpt2c.data.dataset import Dataset
from gpt2c.data.inputs import FIELD, STANDARD_INPUT, open_file
from gpt2c.data.inputs import files as input_files
from gpt2c.data.rows import Rows
from gpt2c.data.shards import HEADERLESS, SUFFIXES, open_shard
from gpt2c.data.tokens import Piece, Tokens
from gpt2c.errors import UserError
from gpt2c.tokenizer import Tokenizer

EMBEDDED = "embedded"
PIECE = 2**20  # tokens, at least, of texts in memory
VALIDATION = re.compile(r".*_val_\d+\.(bin|npy)|val\.bin")


def load_dataset(data: str, tokenizer: Tokenizer, val_fraction: float, context: int) -> Dataset:
    """Read `data` and split it.

    Args:
        data: `embedded`, a text or rows in a format of `gpt2c prepare`, a token shard (.bin, .npy), or a folder of
            either.
        val_fraction: share of the tokens, from the end, kept for validation, unless the folder has shards for it:
            those named *_val_NUMBER, or nanoGPT's val.bin.
        context: tokens in a window; each split must hold context + 1.
    Raises:
        UserError: missing, empty, too short, not UTF-8, no data, a foreign or damaged shard, or another tokenizer's.
    """
    if data == STANDARD_INPUT:
        raise UserError(
            "--data is -, the standard input, which can be read only once: gpt2c prepare - --out FOLDER makes tokens "
            "of it, then give --data FOLDER"
        )
    dataset = _embedded(tokenizer, val_fraction) if data == EMBEDDED else _read(Path(data), tokenizer, val_fraction)
    for name, found in zip(("training", "validation"), dataset.sizes, strict=True):
        if found < context + 1:
            raise UserError(
                f"{data} is too short: its {len(dataset.tokens)} tokens leave {found} for the {name} split, at least "
                f"{context + 1} are needed (--context {context} + 1); give more text or a smaller --context"
            )
    return dataset


def _with_tail(pieces: Sequence[Piece], val_fraction: float, digest: str = "") -> Dataset:
    tokens = Tokens(pieces)
    return Dataset(tokens, len(tokens) - int(len(tokens) * val_fraction), digest)


def _embedded(tokenizer: Tokenizer, val_fraction: float) -> Dataset:
    """The language reference that every CPython carries for its help(): over 400 kB of English, its tables left out,
    from which a model would only learn to draw lines."""
    from pydoc_data.topics import topics

    documents = ["".join(filter(_is_prose, topics[key].splitlines(keepends=True))) for key in sorted(topics)]
    return _with_tail(_joined(((tokenizer.encode(document), True) for document in documents), tokenizer), val_fraction)


def _is_prose(line: str) -> bool:
    """Whether the line is no row or rule of a table."""
    return "|" not in line and (not line.strip() or any(c.isalnum() for c in line))


def _read(path: Path, tokenizer: Tokenizer, val_fraction: float) -> Dataset:
    files = input_files(path)
    shards = [file for file in files if file.suffix in SUFFIXES]
    if shards:
        return _read_shards(path, shards, [file for file in files if file not in shards], tokenizer, val_fraction)
    sources = [open_file(file, Rows(FIELD)) for file in files]
    pieces = _joined(((tokenizer.encode(text.text), text.begins) for source in sources for text in source), tokenizer)
    if not pieces:
        raise UserError(f"{path} is empty: expected UTF-8 text")
    return _with_tail(pieces, val_fraction)


def _read_shards(
    path: Path, files: list[Path], others: list[Path], tokenizer: Tokenizer, val_fraction: float
) -> Dataset:
    digest = ""
    if path / manifest.NAME in others:
        others.remove(path / manifest.NAME)
        digest = manifest.check(path, files, tokenizer)
    if others and {file.name for file in files} == set(HEADERLESS):
        names = ", ".join(file.name for file in others[:3])
        warnings.warn(f"{path} holds nanoGPT's train.bin and val.bin: other files are not read ({names})", stacklevel=2)
    elif others:
        raise UserError(f"{path} mixes token shards ({files[0].name}) and text ({others[0].name}): keep one kind")
    validation = [file for file in files if VALIDATION.fullmatch(file.name)]
    training = [file for file in files if file not in validation]
    opened = [open_shard(file, tokenizer.vocab_size) for file in training + validation]
    if not training or not validation:
        return _with_tail(opened, val_fraction, digest)
    return Dataset(Tokens(opened), sum(map(len, opened[: len(training)])), digest)


def _joined(parts: Iterable[tuple[np.ndarray, bool]], tokenizer: Tokenizer) -> list[np.ndarray]:
    """The ids of documents' parts, each with whether a document begins there, in few pieces, with an end-of-text id
    between each two documents that are not empty; or what else the tokenizer separates texts by."""
    begin, separator = np.array(tokenizer.begin, dtype=np.uint16), tokenizer.separator
    pieces: list[np.ndarray] = []
    waiting: list[np.ndarray] = []
    size = 0
    for ids, begins in parts:
        if not len(ids):
            continue
        waiting += [separator if pieces or waiting else begin, ids] if begins else [ids]
        size += len(ids)
        if size >= PIECE:
            pieces.append(np.concatenate(waiting))
            waiting, size = [], 0
    return [*pieces, np.concatenate(waiting)] if waiting else pieces
