"""Texts to a folder of token shards, once, before training: `gpt2c prepare`.

The tokens are one sequence, each document after an end-of-text id, cut into shards of a fixed length. The bytes written
depend on the sources and the settings alone, not on the number of processes nor on interruptions: after each shard the
manifest holds where the next begins, as the place of the batch of texts that it begins in and the number of that
batch's tokens that are written already.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import gpt2c
from gpt2c.data import manifest
from gpt2c.data.encode import Batch, Place, batches, encoded
from gpt2c.data.inputs import open_inputs, require_outside
from gpt2c.data.manifest import Manifest
from gpt2c.data.packed import sha256
from gpt2c.data.rows import Rows
from gpt2c.data.shards import HEADER_BYTES
from gpt2c.data.sources import Changed, Source
from gpt2c.data.writer import ShardWriter
from gpt2c.errors import UserError
from gpt2c.files import reading
from gpt2c.lock import locked
from gpt2c.tokenizer import get_tokenizer
from gpt2c.words import counted

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


class Progress(NamedTuple):
    """How far a preparation is: bytes of text and tokens of a batch more; bytes of the inputs that have been read, and
    all of them, None if unknown."""

    bytes: int
    tokens: int
    consumed: int
    size: int | None


def prepare(
    settings: Settings,
    out: Path,
    workers: int,
    progress: Callable[[Progress], None] = lambda _: None,
    leave_out_bad_rows: bool = False,
) -> Manifest:
    """Write shards and manifest.json into `out`, a new or empty folder, or go on in one where it was interrupted.

    workers: number of processes that tokenise. progress: called after each batch. leave_out_bad_rows: rows without a
    text are left out and counted, and do not end it. Raises UserError for anything that is wrong with inputs or folder;
    complete shards stay, and without one nothing does.
    """
    rows = Rows(settings.field, leave_out_bad_rows)
    sources = open_inputs(settings.inputs, rows)
    require_outside(out, settings.inputs)
    with locked(out, "preparing"):
        done = _open_folder(settings, out)
        if done.resume is not None:
            try:
                place = _go_on(sources, rows, done)
                _write(sources, rows, place, done, out, workers, progress)
            except BaseException:
                if not done.shards:
                    (out / manifest.NAME).unlink(missing_ok=True)
                raise
    if rows.left_out:
        warnings.warn(rows.summary, stacklevel=2)
    return done


def _write(
    sources: Sequence[Source],
    rows: Rows,
    start: Place,
    done: Manifest,
    out: Path,
    workers: int,
    progress: Callable[[Progress], None],
) -> None:
    settings, skipped = Settings(**done.settings), done.resume["skip"]
    sizes = [source.size for source in sources]
    size = None if None in sizes else sum(sizes)

    def begin(number: int) -> None:
        done.sources[number:] = [sources[number].identity()]

    work = encoded(batches(sources, rows, start, begin), settings.tokenizer, workers)
    with closing(work), ShardWriter(out, settings.val_tokens, settings.shard_tokens, done.shards) as writer:
        for batch, ids in work:
            if skipped:
                _require_same_texts(batch, done)
            written, skipped = skipped, 0
            while written < len(ids):
                complete = len(done.shards)
                written += writer.write(ids[written:])
                if len(done.shards) > complete:
                    done.tokens = sum(shard["tokens"] for shard in done.shards)
                    done.resume = {**asdict(start), "skip": written, "end": batch.end.digest}
                    done.save(out)
            done.documents += batch.documents
            done.bytes += batch.bytes
            done.left_out = batch.left_out
            start = batch.end
            progress(Progress(batch.bytes, len(ids), batch.consumed, size))
        total = sum(shard["tokens"] for shard in done.shards) + writer.count
        bad = f" ({rows.summary})" if rows.left_out else ""
        if not done.bytes:
            documents = counted(done.documents, "document")
            raise UserError(f"{' '.join(settings.inputs)} gives {documents} and no text in all{bad}")
        if total <= settings.val_tokens:
            raise UserError(
                f"{' '.join(settings.inputs)} gives {counted(total, 'token')}{bad}, of which --val-tokens "
                f"{settings.val_tokens} leaves none to train on: give more text or fewer --val-tokens"
            )
        writer.finish()
    done.tokens, done.resume = total, None
    done.save(out)


def _require_same_texts(batch: Batch, done: Manifest) -> None:
    """UserError if the batch, of which some tokens are written already, is not the one that they are of."""
    if batch.end.digest != done.resume.get("end", batch.end.digest):
        names = ", ".join(source["name"] for source in done.sources[done.resume["source"] :][:3])
        raise UserError(
            f"{names} has changed in what was read before the preparation was stopped: begin anew with an empty --out"
        )


def _open_folder(settings: Settings, out: Path) -> Manifest:
    """The manifest in `out`, or a new one there. Nothing is lost by beginning anew where no shard is complete."""
    with reading("folder", out):
        found = {path for path in out.iterdir() if not path.name.startswith(".")}
    done = manifest.read(out) if out / manifest.NAME in found else None
    if done is None or not done.shards:
        done = Manifest(gpt2c.__version__, asdict(settings), manifest.describe(get_tokenizer(settings.tokenizer)))
        done.resume = {**asdict(Place()), "skip": 0}
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


def _go_on(sources: Sequence[Source], rows: Rows, done: Manifest) -> Place:
    """Put the sources where the next shard begins; returns that place. Raises UserError if what was read has changed:
    a source that was read to its end, or the texts of the last one before that place."""
    place = Place(**{name: value for name, value in done.resume.items() if name not in ("skip", "end")})
    del done.sources[place.source + 1 :]
    if len(sources) < len(done.sources):
        raise UserError(
            f"the preparation began with {done.sources[len(sources)]['name']}, which is no longer an input: put "
            "it back, or begin anew with an empty --out"
        )
    for number, (source, recorded) in enumerate(zip(sources, done.sources, strict=False)):
        try:
            source.go_on(recorded)
            if number == place.source and place.position is not None:
                _enter(source, place)
        except Changed:
            if number < place.source or "end" not in done.resume or not _reread(source, place):
                raise
            warnings.warn(f"{source.name} has changed, but not in what was read of it: going on with it", stacklevel=2)
    rows.left_out, rows.first = done.left_out, ""
    return place


def _enter(source: Source, place: Place) -> None:
    if place.position.keys() != source.position.keys():
        raise UserError(f"{source.name} was begun by another version of gpt2c: begin anew with an empty --out")
    source.position = place.position


def _reread(source: Source, place: Place) -> bool:
    """Whether the source still begins with the texts before `place`; it is there then."""
    here = Place(place.source, digest=place.source_digest, source_digest=place.source_digest)
    with closing(iter(source)) as texts:
        while here.texts < place.texts and (text := next(texts, None)) is not None:
            here = here.after(text)
    return here.digest == place.digest
