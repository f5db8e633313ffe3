"""What a folder without a byte-level BPE's files says of its tokenizer all the same."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

from gpt2c.errors import UserError
from gpt2c.tokenizer.description import ADDED, CLASSES, TOKENIZER_CONFIG

# Names, in small letters, of other tokenizers' files, and of those that are read under other names.
PATTERNS = (
    "vocab.txt", "*vocab.json", "*merges.txt", "*encoder.json", "*.bpe", "*.tiktoken", "*.spm", "*spiece.model",
    "*sentencepiece*.model", "tokenizer.model", "*tokenizer.json", ADDED,
)  # fmt: skip


def require_unsaid(folder: Path, assumed: str) -> None:
    """UserError if a file in `folder` says that its tokenizer is another one than `assumed`, bytes or gpt2."""
    instead = "expected tokenizer.json, or vocab.json and merges.txt: save it so with transformers"
    for path in sorted(folder.iterdir()):
        if any(fnmatch(path.name.lower(), pattern) for pattern in PATTERNS):
            raise UserError(f"{folder} has a tokenizer's file that is not read by this name, {path.name}: {instead}")
    for name in (TOKENIZER_CONFIG, "config.json"):
        kind = _class(folder / name)
        if kind and not (assumed == "gpt2" and kind.removesuffix("Fast") in CLASSES):
            raise UserError(
                f"{folder / name} says that the tokenizer is a {kind}, of which there are no files: {instead}"
            )


def _class(path: Path) -> str | None:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}") from error
    return found.get("tokenizer_class") if isinstance(found, dict) else None
