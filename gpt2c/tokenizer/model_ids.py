"""The ids that a model's own files name: those that end a text, and the one that begins it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from gpt2c.errors import UserError, reason
from gpt2c.files import reading, write_atomically
from gpt2c.tokenizer.base import Tokenizer

FILES = ("generation_config.json", "config.json")
GPT2_END = 50256  # transformers writes it into the files of every GPT-2, whatever its vocabulary


class ModelIds(NamedTuple):
    """ends: those of eos_token_id, in their order. begin: that of bos_token_id, or nothing."""

    ends: tuple[int, ...] = ()
    begin: tuple[int, ...] = ()


def model_ids(folder: Path, vocab_size: int) -> ModelIds:
    """What generation_config.json says, or else config.json, of the `vocab_size` ids that there are.

    UserError for a damaged file. An id beyond is left out, with a note unless it is transformers' default.
    """
    return ModelIds(*(_first(folder, key, vocab_size) for key in ("eos_token_id", "bos_token_id")))


def write_model_ids(folder: Path, tokenizer: Tokenizer, more_ends: tuple[int, ...] = ()) -> None:
    """Have the model's files in `folder`, written already, name the tokenizer's ids: that which begins a text, those
    that end one, `more_ends` before them, and the padding's. Raises OSError."""
    ends = tuple(dict.fromkeys((*more_ends, *tokenizer.ends)))
    end = tokenizer.end_of_text if tokenizer.end_of_text in ends else ends[0]
    ids: dict[str, Any] = {"bos_token_id": tokenizer.start, "eos_token_id": end}
    pad = tokenizer.special.get(tokenizer.facts.roles.get("pad_token"))
    if pad is not None:
        ids["pad_token_id"] = pad
    settings = {**_read(folder / FILES[1]), **ids}
    if len(ends) > 1:
        ids["eos_token_id"] = list(ends)
    for name, contents in zip(FILES, (ids, settings), strict=True):
        write_atomically(folder / name, (json.dumps(contents, indent=2) + "\n").encode())


def _first(folder: Path, key: str, vocab_size: int) -> tuple[int, ...]:
    for path in (folder / name for name in FILES):
        value = _read(path).get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(id, int) and not isinstance(id, bool) and id >= 0 for id in ids):
            raise UserError(f"{path} has the {key} {value!r}, expected an id or a list of ids")
        beyond = [id for id in ids if id >= vocab_size and id != GPT2_END]
        if beyond:
            warnings.warn(
                f"{path} has the {key} {beyond[0]}, which is none of the {vocab_size} ids there are: it is left out",
                stacklevel=1,
            )
        if found := tuple(dict.fromkeys(id for id in ids if id < vocab_size)):
            return found
    return ()


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    with reading("model's settings", path):
        raw = path.read_bytes()
    try:
        found = json.loads(raw)
    except ValueError as error:
        raise UserError(f"cannot read {path} as JSON: {reason(error)}") from error
    return found if isinstance(found, dict) else {}
