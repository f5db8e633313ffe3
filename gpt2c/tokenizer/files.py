"""A tokenizer's files as Hugging Face's libraries have them: AutoTokenizer loads the folder, and we load theirs.

tokenizer.json                          everything, for the library `tokenizers`; all that is read here
tokenizer_config.json                   the class, the end-of-text token, and how to chat, for transformers
vocab.json, merges.txt                  the files of GPT-2's own release
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2c.errors import UserError
from gpt2c.files import reading, write_atomically, writing
from gpt2c.tokenizer.added import AddedTokens, base_of
from gpt2c.tokenizer.base import END_OF_TEXT, Tokenizer
from gpt2c.tokenizer.bpe import MOST_IDS, BytePairTokenizer, merges, spell, unspell

TOKENIZER, TOKENIZER_CONFIG, VOCAB, MERGES = "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"
CHAT_TEMPLATE = "chat_template.jinja"  # where newer versions of transformers keep it


def save_tokenizer(tokenizer: Tokenizer, folder: Path, longest: int | None = None) -> None:
    """Write the four files into `folder`; `longest`: the context of the model that they are for, in tokens.

    In these libraries the text `<|endoftext|>` is the end-of-text token, and that of an added token is this; here they
    are ordinary text. UserError if they cannot be written.
    """
    base = base_of(tokenizer)
    tokens = tuple(base.decode_bytes([i]) for i in range(tokenizer.end_of_text))
    is_more = isinstance(tokenizer, AddedTokens)
    added, chat_template = (tokenizer.added, tokenizer.chat_template) if is_more else ((), "")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in _texts(tokens, added, chat_template, longest).items():
            write_atomically(folder / name, text)


@functools.lru_cache(maxsize=1)
def _texts(
    tokens: tuple[bytes, ...], added: tuple[str, ...], chat_template: str, longest: int | None
) -> Mapping[str, bytes]:
    """The four files' contents by their names; kept, since each checkpoint of a run has the same, and those of GPT-2's
    vocabulary take two seconds."""
    vocab = {**{spell(token): i for i, token in enumerate(tokens)}, END_OF_TEXT: len(tokens)}
    pairs = [[spell(left), spell(right)] for left, right in merges(tokens)]
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest or 10**9,
        "clean_up_tokenization_spaces": False,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
    }
    if chat_template:
        config["chat_template"] = chat_template
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    texts = {
        TOKENIZER: _json(_description(vocab, pairs, (END_OF_TEXT, *added))),
        TOKENIZER_CONFIG: _json(config),
        VOCAB: _json(vocab),
        MERGES: "\n".join(lines) + "\n",
    }
    return {name: text.encode() for name, text in texts.items()}


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a folder's tokenizer.json. UserError if it is missing, damaged, or not of GPT-2's kind."""
    path = folder / TOKENIZER
    with reading("tokenizer", path):
        text = path.read_bytes()
    try:
        tokens, added, pairs = _parse(json.loads(text))
        consistent = merges(tokens) == pairs
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a tokenizer of GPT-2's kind ({error}): expected byte-level BPE with {END_OF_TEXT} last, "
            "or after it added tokens only"
        ) from error
    if not consistent:
        raise UserError(f"{path} has merges that do not follow from its ids: expected ids in the order of the merges")
    base = BytePairTokenizer(str(folder), tokens)
    return AddedTokens(base, added, _chat_template(folder)) if added else base


def _chat_template(folder: Path) -> str:
    """What Hugging Face's libraries spell conversations with; empty if the folder has nothing."""
    with reading("tokenizer", folder):
        if (folder / CHAT_TEMPLATE).exists():
            return (folder / CHAT_TEMPLATE).read_text(encoding="utf-8")
        config = (folder / TOKENIZER_CONFIG).read_bytes() if (folder / TOKENIZER_CONFIG).exists() else b"{}"
    try:
        template = json.loads(config).get("chat_template")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{folder / TOKENIZER_CONFIG} is damaged: expected a JSON object") from error
    return template if isinstance(template, str) else ""


def _parse(description: dict[str, Any]) -> tuple[list[bytes], list[str], list[tuple[bytes, bytes]]]:
    """Tokens, added ones, and merges; raises ValueError, KeyError, TypeError or AttributeError for anything that is
    another kind."""
    model = description["model"]
    if model.get("type", "BPE") != "BPE" or model.get("dropout") or model.get("byte_fallback"):
        raise ValueError("its model is another one")
    if description.get("normalizer"):
        raise ValueError("it changes texts before it encodes them")
    cut = description["pre_tokenizer"]
    if cut.get("type") != "ByteLevel" or cut.get("add_prefix_space") or not cut.get("use_regex", True):
        raise ValueError("it cuts texts in another way")
    vocab: dict[str, int] = dict(model["vocab"])
    added = {token["content"]: token["id"] for token in description.get("added_tokens", [])}
    vocab |= added
    names = sorted(vocab, key=vocab.__getitem__)
    if [vocab[name] for name in names] != list(range(len(vocab))) or len(vocab) > MOST_IDS:
        raise ValueError(f"its ids are not 0 to at most {MOST_IDS - 1}")
    end = names.index(END_OF_TEXT) if END_OF_TEXT in names else len(names) - 1
    if names[end] != END_OF_TEXT or not added.keys() >= set(names[end + 1 :]):
        raise ValueError(f"its last id is {names[-1]!r}")
    tokens = [unspell(name) for name in names[:end]]
    if len({token for token in tokens if len(token) == 1}) != 256:
        raise ValueError("it lacks some of the 256 bytes")
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return tokens, names[end + 1 :], [(unspell(left), unspell(right)) for left, right in pairs]


def _description(vocab: dict[str, int], pairs: list[list[str]], special: Sequence[str]) -> dict[str, Any]:
    """tokenizer.json; special: the vocabulary's last token and those after it."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    nothing = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    switches = dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": len(vocab) - 1 + i, "content": name, **flags, "special": True} for i, name in enumerate(special)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", **nothing, **switches, "vocab": vocab, "merges": pairs},
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"
