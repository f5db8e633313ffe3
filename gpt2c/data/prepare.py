"""Texts to a folder of token shards, once, before training: `gpt2c prepare`.

The tokens are one sequence, each document after an end-of-text id, cut into shards of a fixed length. The bytes written
depend on the sources and the settings alone, not on the number of processes nor on interruptions: after each shard the
manifest holds where the next begins, as the position of the batch of texts that it begins in and the number of that
batch's tokens that are written already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import gpt2c
from gpt2c.data import manifest
from gpt2c.data.encode import batches, encoded
from gpt2c.data.inputs import open_inputs
from gpt2c.data.manifest import Manifest
from gpt2c.data.packed import sha256
from gpt2c.data.shards import HEADER_BYTES
from gpt2c.data.sources import Source
from gpt2c.data.writer import ShardWriter
from gpt2c.errors import UserError
from gpt2c.files import reading, writing
from gpt2c.tokenizer import get_tokenizer

MOST_TOKENS = 2**31 - 1  # of a shard: its header holds an int32


@dataclass(frozen=True)
class Settings:
    """What decides the bytes that are written; the manifest keeps it."""

    inputs: list[str]
    tokenizer: str
    shard_tokens: int
    val_tokens: int
    field: str

    def __post_init__(self) -> None:
        """Raises UserError for a length that a shard cannot have."""
        for flag, value, least in (("shard", self.shard_tokens, 1), ("val", self.val_tokens, 0)):
            if not least <= value <= MOST_TOKENS:
                raise UserError(f"--{flag}-tokens is {value}, expected {least} to {MOST_TOKENS}")


def prepare(settings: Settings, out: Path, workers: int, progress: Callable[[int, int], None]) -> Manifest:
    """Write shards and manifest.json into `out`, a new or empty folder, or go on in one where it was interrupted.

    workers: number of processes that tokenise. progress: called with each batch's bytes of text and tokens. Raises
    UserError for anything that is wrong with inputs or folder; complete shards stay.
    """
    sources = open_inputs(settings.inputs, settings.field)
    _require_outside(out, settings.inputs)
    done = _open_folder(settings, out)
    if done.resume is not None:
        _go_on(sources, done)
        _write(sources, done, out, workers, progress)
    return done


def _write(
    sources: Sequence[Source], done: Manifest, out: Path, workers: int, progress: Callable[[int, int], None]
) -> None:
    settings = Settings(**done.settings)

    def begin(number: int) -> None:
        done.sources[number:] = [sources[number].identity()]

    start, skipped = dict(done.resume), done.resume["skip"]
    work = encoded(batches(sources, start["source"], begin), settings.tokenizer, workers)
    with closing(work), ShardWriter(out, settings.val_tokens, settings.shard_tokens, done.shards) as writer:
        for batch, ids in work:
            written, skipped = skipped, 0
            while written < len(ids):
                complete = len(done.shards)
                written += writer.write(ids[written:])
                if len(done.shards) > complete:
                    done.tokens = sum(shard["tokens"] for shard in done.shards)
                    done.resume = {**start, "skip": written}
                    done.save(out)
            done.documents += batch.documents
            done.bytes += batch.bytes
            start = {"source": batch.source, "position": batch.position}
            progress(batch.bytes, len(ids))
        total = sum(shard["tokens"] for shard in done.shards) + writer.count
        if total <= settings.val_tokens:
            raise UserError(
                f"{' '.join(settings.inputs)} gives {total} tokens, of which --val-tokens {settings.val_tokens} leaves "
                "none to train on: give more text or fewer --val-tokens"
            )
        writer.finish()
    done.tokens, done.resume = total, None
    done.save(out)


def _open_folder(settings: Settings, out: Path) -> Manifest:
    """The manifest in `out`, or a new one there. Nothing is lost by beginning anew where no shard is complete."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with reading("folder", out):
        found = {path for path in out.iterdir() if not path.name.startswith(".")}
    done = manifest.read(out) if out / manifest.NAME in found else None
    if done is None or not done.shards:
        done = Manifest(gpt2c.__version__, asdict(settings), manifest.describe(get_tokenizer(settings.tokenizer)))
        done.resume = {"source": 0, "position": None, "skip": 0}
    _require_same(done, settings, out)
    expected = {out / manifest.NAME, *(out / shard["file"] for shard in done.shards)}
    # The last one may have been finished just before the program was killed.
    expected.add(ShardWriter(out, settings.val_tokens, settings.shard_tokens, done.shards).path)
    for path in sorted(found - expected):
        raise UserError(f"{out} holds {path.name}, which this command has not written: give a new or empty --out")
    done.save(out)
    return done


def _require_same(done: Manifest, settings: Settings, out: Path) -> None:
    for name, value in asdict(settings).items():
        if done.settings.get(name) != value:
            raise UserError(
                f"{out} was begun with {name} {done.settings.get(name)}, found {value}: give the same command to go "
                "on, or a new --out"
            )
    if done.tokenizer != manifest.describe(get_tokenizer(settings.tokenizer)):
        raise UserError(f"{out} was begun with another vocabulary of {settings.tokenizer}: give a new --out")
    for shard in done.shards:
        path, size = out / shard["file"], HEADER_BYTES + 2 * shard["tokens"]
        with reading("token shard", path):
            found = path.stat().st_size
            digest = sha256(path) if found == size else ""
        if digest != shard["sha256"]:
            raise UserError(
                f"{path} is damaged: expected the {size} bytes that were written, found {found}"
                f"{' others' if found == size else ''}; begin anew with a new --out"
            )


def _go_on(sources: Sequence[Source], done: Manifest) -> None:
    """Put the sources where the next shard begins. Raises UserError if one that was begun has changed."""
    first = done.resume["source"]
    del done.sources[first + 1 :]
    if len(sources) < len(done.sources):
        raise UserError(
            f"the preparation began with {done.sources[len(sources)]['name']}, which is no longer an input: put "
            "it back, or begin anew with an empty --out"
        )
    for source, recorded in zip(sources, done.sources, strict=False):
        source.go_on(recorded)
    if done.resume["position"] is not None:
        sources[first].position = done.resume["position"]


def _require_outside(out: Path, inputs: Sequence[str]) -> None:
    for name in inputs:
        if Path(name).is_dir() and out.resolve().is_relative_to(Path(name).resolve()):
            raise UserError(f"--out {out} lies in the input {name}, so that it would be read: give another folder")
