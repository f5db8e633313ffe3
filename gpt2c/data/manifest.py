"""manifest.json: what `gpt2c prepare` has written into a folder, from what, and where it goes on if it was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpt2c.data.shards import HEADER_BYTES
from gpt2c.errors import UserError
from gpt2c.files import reading, write_atomically, writing
from gpt2c.tokenizer import Tokenizer

NAME = "manifest.json"


@dataclass
class Manifest:
    """The file's keys. All but `resume` are the same however often the command was stopped.

    settings: the command's flags that decide what is written.
    tokenizer: its name, vocab_size, and the sha256 of its vocabulary.
    sources: name, and size in bytes and sha256 of a file, or revision of a data set; those that were begun.
    documents, bytes, tokens: how much is in all shards together; bytes of UTF-8. left_out: bad rows that are not.
    shards: file, tokens and sha256 of each, in order.
    resume: None when all is done, else where the next shard begins (gpt2c.data.prepare).
    """

    gpt2c: str
    settings: dict[str, Any]
    tokenizer: dict[str, Any]
    sources: list[dict[str, Any]] = field(default_factory=list)
    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    left_out: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)
    resume: dict[str, Any] | None = None

    def save(self, folder: Path) -> None:
        """Put it in the place of the one before, at once. UserError if that fails."""
        with writing(folder / NAME):
            write_atomically(folder / NAME, (json.dumps(asdict(self), indent=2) + "\n").encode())


def read(folder: Path) -> Manifest:
    """The manifest of a folder. UserError if it cannot be read or another program has written it."""
    path = folder / NAME
    with reading("manifest", path):
        raw = path.read_bytes()
    try:
        manifest = Manifest(**json.loads(raw))
        _need(manifest)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is not a manifest that `gpt2c prepare` has written: {error}") from error
    return manifest


def _need(manifest: Manifest) -> None:
    """What is read of one is there. Raises KeyError or TypeError."""
    if not isinstance(manifest.tokenizer["vocab_size"], int) or not isinstance(manifest.tokenizer["sha256"], str):
        raise TypeError("its tokenizer has no vocab_size and sha256")
    for shard in manifest.shards:
        for name in ("file", "tokens", "sha256"):
            shard[name]


def is_one(path: Path) -> bool:
    """Whether a file of that name is a manifest of `gpt2c prepare`, and not another program's."""
    with reading("manifest", path):
        raw = path.read_bytes()
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"gpt2c", "shards", "resume"} <= found.keys()


def require_complete(folder: Path) -> None:
    """Raises UserError if `gpt2c prepare` has not completed the folder."""
    if read(folder).resume is not None:
        raise UserError(f"{folder} is not complete: `gpt2c prepare` was stopped, give the same command to go on")


def describe(tokenizer: Tokenizer, ids: int | None = None) -> dict[str, Any]:
    """What must be the same for the same ids to mean the same text: sha256 is that of each token's length, as 4 bytes,
    and bytes, in the order of the ids, and of the tokenizer's other rules. ids: those of them that count, the first."""
    digest = hashlib.sha256()
    for i in range(tokenizer.vocab_size if ids is None else ids):
        token = tokenizer.decode_bytes([i])
        digest.update(len(token).to_bytes(4, "little") + token)
    digest.update(tokenizer.rules.encode())
    return {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size, "sha256": digest.hexdigest()}


def check(folder: Path, files: Sequence[Path], tokenizer: Tokenizer) -> str:
    """The SHA-256 over all shards' own, for the fingerprint of the folder's data.

    Raises UserError if the folder is not complete, has lost or gained a shard, or is another tokenizer's. The shards'
    own sums are not computed: that would read them all.
    """
    require_complete(folder)
    manifest = read(folder)
    ids = manifest.tokenizer["vocab_size"]  # of ours there may be more: special tokens, which no text has
    if ids > tokenizer.vocab_size or manifest.tokenizer["sha256"] != describe(tokenizer, ids)["sha256"]:
        raise UserError(
            f"{folder} was prepared with the tokenizer {manifest.tokenizer.get('name')}, found --tokenizer "
            f"{tokenizer.name}, whose vocabulary is another: give the one that it was prepared with"
        )
    sizes = {folder / shard["file"]: HEADER_BYTES + 2 * shard["tokens"] for shard in manifest.shards}
    for path in sorted(sizes.keys() ^ set(files)):
        state = "is missing" if path in sizes else "is not among those"
        raise UserError(f"{path} {state} that {folder / NAME} lists: prepare the folder anew")
    for path, size in sizes.items():
        with reading("token shard", path):
            found = path.stat().st_size
        if found != size:
            raise UserError(f"{path} is truncated or damaged: {folder / NAME} lists {size} bytes, found {found}")
    return hashlib.sha256("".join(shard["sha256"] for shard in manifest.shards).encode()).hexdigest()
