"""What a folder's files say of a tokenizer, brought into one form: that of tokenizer.json.

tokenizer.json                               everything but what special tokens are for
vocab.json, merges.txt, added_tokens.json    the same in GPT-2's own files, which have nothing of the rest
encoder.json, vocab.bpe                      the first two, by OpenAI's names
tokenizer_config.json, special_tokens_map.json    what special tokens are for, and how to chat
config.json, generation_config.json          the ids that end and begin a text, as the model has learned them
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gpt2c.errors import UserError
from gpt2c.files import reading, why
from gpt2c.tokenizer.base import END_OF_TEXT, Facts
from gpt2c.tokenizer.model_ids import model_ids

TOKENIZER, TOKENIZER_CONFIG, VOCAB, MERGES = "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"
OPENAIS = ("encoder.json", "vocab.bpe")
ADDED, SPECIAL_MAP = "added_tokens.json", "special_tokens_map.json"
CHAT_TEMPLATE = "chat_template.jinja"  # where newer versions of transformers keep it
MORE_TEMPLATES = "additional_chat_templates/*.jinja"

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MORE_ROLES = ("additional_special_tokens", "extra_special_tokens")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
PARTS = ("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder")
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
CLASS = "GPT2Tokenizer"  # transformers' for a folder that names none
CLASSES = (CLASS, "PreTrainedTokenizer", "TokenizersBackend")  # of these vocab.json and merges.txt say everything


def has_files(folder: Path) -> bool:
    """Whether a folder has a tokenizer's files."""
    return (folder / TOKENIZER).exists() or any((folder / name).exists() for name in old_files(folder))


def old_files(folder: Path) -> tuple[str, str]:
    """The names of the vocabulary and of the merges in a folder."""
    theirs = any((folder / name).exists() for name in OPENAIS)
    ours = any((folder / name).exists() for name in (VOCAB, MERGES))
    return OPENAIS if theirs and not ours else (VOCAB, MERGES)


def read_description(folder: Path) -> tuple[dict[str, Any], Facts]:
    """What tokenizer.json would hold, with every special token among its added ones, and what else the files say.

    Raises UserError for a file that is missing or damaged, and ValueError, KeyError, TypeError or AttributeError for
    one that holds something else.
    """
    config = {**_read(folder / SPECIAL_MAP), **_read(folder / TOKENIZER_CONFIG)}
    kind = str(config.get("tokenizer_class") or CLASS).removesuffix("Fast")
    description = _read(folder / TOKENIZER)
    is_old = not description
    if is_old:
        if kind not in CLASSES:
            raise ValueError(f"its class is {kind}; save it as {TOKENIZER} with transformers")
        description = _from_old_files(folder)
    if more := set(description) - {*PARTS, "model"}:
        raise ValueError(f"it has the unknown part {min(more)}")
    _add_others(description, folder, config)
    roles = _roles(config, kind, description, folder)
    _complete(description, roles)
    _follow(description, config, roles, kind, is_old)
    _tell(folder, description)
    records = {record["content"]: record for record in description["added_tokens"]}
    flags = {name: {flag: True for flag in FLAGS if record.get(flag)} for name, record in records.items()}
    return description, Facts(roles, flags, _chat_template(folder, config))


def describe(vocab: Mapping[str, int], pairs: Iterable[Any], added: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE as GPT-2's."""
    nothing = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    switches = dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", **nothing, **switches, "vocab": vocab, "merges": list(pairs)},
    }


def special_record(id: int, name: str, flags: Mapping[str, bool] | None = None) -> dict[str, Any]:
    """A special token as tokenizer.json has it."""
    return {"id": id, "content": name, **dict.fromkeys(FLAGS, False), **(flags or {}), "special": True}


def _read(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty if there is no file."""
    if not path.exists():
        return {}
    with reading("tokenizer", path):
        raw = path.read_bytes()
    try:
        found = json.loads(raw)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {why(path, error)}; expected a JSON object") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: expected a JSON object")
    return found


def _from_old_files(folder: Path) -> dict[str, Any]:
    names = old_files(folder)
    for name in names:
        if not (folder / name).exists():
            raise UserError(f"{folder} has no {name}: expected {TOKENIZER}, or both {names[0]} and {names[1]}")
    vocab, merges = _read(folder / names[0]), folder / names[1]
    with reading("tokenizer", merges):
        lines = merges.read_text(encoding="utf-8").split("\n")
    pairs = [line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    wrong = next((pair for pair in pairs if len(pair) != 2), None)
    if wrong:
        raise UserError(f"{merges} has the line {' '.join(wrong)!r}, expected two tokens and a space")
    return describe(vocab, pairs, [])


def _add_others(description: dict[str, Any], folder: Path, config: Mapping[str, Any]) -> None:
    """The added tokens that stand in the files beside it alone, under the ids that these give them."""
    records: Mapping[str, Any] = config.get("added_tokens_decoder") or {}
    known: dict[int, dict[str, Any]] = {int(id): record for id, record in records.items()}
    for name, id in _read(folder / ADDED).items():
        known.setdefault(id, {"content": name, "special": False})
    added = list(description.get("added_tokens") or [])
    there = {token["content"] for token in added}
    more = [id for id in sorted(known) if known[id]["content"] not in there]
    description["added_tokens"] = added + [{**special_record(id, ""), "special": False, **known[id]} for id in more]


def _chat_template(folder: Path, config: Mapping[str, Any]) -> str:
    """How conversations are spelled; of several templates the one called `default`."""
    found = config.get("chat_template")
    if isinstance(found, list):
        found = {template["name"]: template["template"] for template in found}
    named: dict[str, str] = found if isinstance(found, dict) else {"default": found} if found else {}
    if (folder / CHAT_TEMPLATE).exists():
        with reading("chat template", folder / CHAT_TEMPLATE):
            named["default"] = (folder / CHAT_TEMPLATE).read_text(encoding="utf-8")
    others = [*(name for name in named if name != "default"), *(p.stem for p in folder.glob(MORE_TEMPLATES))]
    if others:
        warnings.warn(
            f"{folder} has other chat templates, which stay unused: {', '.join(sorted(others))}", stacklevel=2
        )
    return named.get("default", "")


def _roles(config: Mapping[str, Any], kind: str, description: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Names of special tokens by what they are for; `eos_token` always."""
    ids = {**description["model"]["vocab"], **{t["content"]: t["id"] for t in description.get("added_tokens") or []}}
    names = {id: name for name, id in ids.items()}
    roles = {role: _name(config[role]) for role in ROLES if config.get(role)}
    model = model_ids(folder, len(ids))
    ends = {"eos_token": model.ends[:1], "bos_token": model.begin}
    for role in ("bos_token", "eos_token", "unk_token"):
        named = next((names[id] for id in ends.get(role, ()) if id in names), None)
        if role in config and (role != "eos_token" or config[role]):
            continue
        if END_OF_TEXT in ids and (kind == CLASS or role == "eos_token"):
            roles[role] = END_OF_TEXT
        elif named or role == "eos_token":
            roles[role] = named or END_OF_TEXT
    return roles | {role: config[role] for role in MORE_ROLES if config.get(role)}


def _name(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else str(token)


def _complete(description: dict[str, Any], roles: Mapping[str, Any]) -> None:
    """Have every special token among the added ones, as transformers does: those that no vocabulary has come last."""
    vocab = description["model"]["vocab"]
    description["added_tokens"] = added = list(description.get("added_tokens") or [])
    names = [roles[role] for role in ROLES if role in roles]
    for role in MORE_ROLES:
        more = roles.get(role, [])
        names += map(_name, more.values() if isinstance(more, dict) else more)
    for name in dict.fromkeys(names):
        if record := next((token for token in added if token["content"] == name), None):
            record["special"] = True
        else:
            new = max([-1, *vocab.values(), *(token["id"] for token in added)]) + 1
            added.append(special_record(vocab.get(name, new), name))
    added.sort(key=lambda token: token["id"])


def _follow(
    description: dict[str, Any], config: Mapping[str, Any], roles: Mapping[str, Any], kind: str, is_old: bool
) -> None:
    """What tokenizer_config.json says of the ids of a text, as transformers follows it."""
    cut = description.get("pre_tokenizer") or {}
    if kind == CLASS and cut.get("type") == "ByteLevel" and isinstance(config.get("add_prefix_space"), bool):
        description["pre_tokenizer"] = {**cut, "add_prefix_space": config["add_prefix_space"]}
    asked = [role for role in ("bos_token", "eos_token") if config.get(f"add_{role}") and role in roles]
    if not asked:
        return
    if not is_old:
        if adds_nothing(description.get("post_processor")):
            warnings.warn(
                f"{TOKENIZER_CONFIG} says add_{asked[0]}, but {TOKENIZER}, which is followed, adds none to a text",
                stacklevel=2,
            )
        return
    ids = {token["content"]: token["id"] for token in description["added_tokens"]}
    text = [{"Sequence": {"id": "A", "type_id": 0}}]
    begin, finish = ([{"SpecialToken": {"id": roles[role], "type_id": 0}}] * (role in asked) for role in ROLES[:2])
    tokens = {roles[role]: {"id": roles[role], "ids": [ids[roles[role]]], "tokens": [roles[role]]} for role in asked}
    single = begin + text + finish
    description["post_processor"] = {
        "type": "TemplateProcessing", "single": single, "pair": single + [{"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": tokens,
    }  # fmt: skip


def adds_nothing(post_processor: Mapping[str, Any] | None) -> bool:
    """Whether a text has its own ids alone."""
    if not post_processor or post_processor.get("type") == "ByteLevel":
        return True
    single = post_processor.get("single")
    return post_processor.get("type") == "TemplateProcessing" and all("Sequence" in part for part in single or [{}])


def _tell(folder: Path, description: Mapping[str, Any]) -> None:
    given = [name for name in ("truncation", "padding") if description.get(name)]
    if given:
        warnings.warn(
            f"the {' and '.join(given)} of {folder / TOKENIZER} stay unused: texts are encoded whole, as transformers "
            "does unless told otherwise",
            stacklevel=2,
        )
