"""A tokenizer from its files. AutoTokenizer loads the folders that we write, and we load theirs (description.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2c.errors import UserError
from gpt2c.tokenizer.added import AddedTokens
from gpt2c.tokenizer.base import END_OF_TEXT, Facts, Tokenizer
from gpt2c.tokenizer.bpe import MOST_IDS, BytePairTokenizer, merges, unspell
from gpt2c.tokenizer.description import FLAGS, TOKENIZER, adds_nothing, has_files, old_files, read_description
from gpt2c.tokenizer.library import LibraryTokenizer

Tokens = tuple[list[bytes], list[str]]


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder: of GPT-2's kind our own, any other byte-level BPE through the library `tokenizers`.

    UserError if the files are missing, damaged, or say what is not followed.
    """
    is_old = has_files(folder) and not (folder / TOKENIZER).exists()
    path = folder / (old_files(folder)[0] if is_old else TOKENIZER)
    if not has_files(folder):
        raise UserError(f"cannot read the tokenizer {path}: No such file or directory")
    try:
        description, facts = read_description(folder)
        plain = _plain(description)
        if plain is None:
            return LibraryTokenizer(str(folder), description, facts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a tokenizer that can be followed ({error}): expected byte-level BPE") from error
    return _own(str(folder), *plain, facts)


def _own(name: str, tokens: Sequence[bytes], added: Sequence[str], facts: Facts) -> Tokenizer:
    base = BytePairTokenizer(name, tokens)
    found: Tokenizer = AddedTokens(base, added) if added else base
    found.facts = facts
    found.end_of_text = found.special[facts.roles["eos_token"]]
    return found


def _plain(description: Mapping[str, Any]) -> Tokens | None:
    """Tokens and the special ones after <|endoftext|>; None unless these, with GPT-2's regular expression, decide the
    ids of every text. Raises ValueError for ids that are not numbered through, KeyError and others for another file."""
    model, cut, added = description["model"], description["pre_tokenizer"] or {}, description["added_tokens"]
    if model.get("type", "BPE") != "BPE":
        return None
    ids = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
    names = sorted(ids, key=ids.__getitem__)
    if [ids[name] for name in names] != list(range(len(ids))) or len(ids) > MOST_IDS:
        raise ValueError(f"its ids are not 0 to at most {MOST_IDS - 1}, each once")
    wants = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    odd = ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    if (
        description["normalizer"]
        or {name: cut.get(name, wanted) for name, wanted in wants.items()} != wants
        or not adds_nothing(description["post_processor"])
        or (description["decoder"] or {}).get("type") != "ByteLevel"
        or any(model.get(name) for name in odd)
        or any(not token.get("special") or any(token.get(flag) for flag in FLAGS[:3]) for token in added)
        or END_OF_TEXT not in names
    ):
        return None
    end = names.index(END_OF_TEXT)
    if {token["content"] for token in added} != set(names[end:]):
        return None
    try:
        tokens = [unspell(name) for name in names[:end]]
        pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
        follows = merges(tokens) == [(unspell(left), unspell(right)) for left, right in pairs]
    except (KeyError, ValueError):  # bytes spelled otherwise, or tokens that merges cannot make
        return None
    return (tokens, names[end + 1 :]) if follows and len({t for t in tokens if len(t) == 1}) == 256 else None
