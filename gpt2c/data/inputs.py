"""From the names of files, folders and data sets to sources, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from gpt2c.data import manifest, shards
from gpt2c.data.hub import PREFIX, Hub
from gpt2c.data.json_rows import LINES, JsonLines, json_source
from gpt2c.data.packed import inner_suffix
from gpt2c.data.rows import Rows
from gpt2c.data.sources import File, Source, StandardInput, TextFile
from gpt2c.data.tables import DIALECTS, Csv, Parquet
from gpt2c.errors import UserError
from gpt2c.files import PULL, is_pointer, reading, require_file

STANDARD_INPUT = "-"
FIELD = "text"  # of rows, if nothing else is said
# Files that no text is learned from, by their names: of a run, a tokenizer, a model.
MADE = {
    "run.json": "a run",
    "tokenizer.json": "a tokenizer",
    "merges.txt": "a tokenizer",
    "vocab.bpe": "a tokenizer",
    "model.safetensors": "a model",
    "pytorch_model.bin": "a model",
}


def open_inputs(inputs: Sequence[str], rows: Rows) -> list[Source]:
    """The sources: a file by its name, a folder's files in sorted order without hidden ones, `-`, `hf:NAME[:CONFIG]`.

    Raises UserError if there is none, one is missing, or one holds tokens already.
    """
    sources: list[Source] = []
    for name in inputs:
        if name == STANDARD_INPUT:
            sources.append(StandardInput(name))
        elif name.startswith(PREFIX):
            sources.append(Hub(name, rows))
        else:
            sources += [open_file(path, rows) for path in files(Path(name))]
    if not sources:
        raise UserError("there is nothing to prepare: give at least one file, folder, `-` or hf:NAME")
    return sources


def open_file(path: Path, rows: Rows) -> File:
    """The source of a file, by its name. UserError if it holds tokens already."""
    suffix = inner_suffix(path)
    if suffix in shards.SUFFIXES:
        raise UserError(f"{path} is a token shard already: give it to gpt2c train as --data")
    if suffix in LINES:
        return JsonLines(path, rows)
    if suffix == ".json":
        return json_source(path, rows)
    if suffix in DIALECTS:
        return Csv(path, rows)
    return Parquet(path, rows) if suffix == ".parquet" else TextFile(path)


def files(path: Path) -> list[Path]:
    """`path` itself, or all files below it in sorted order, hidden ones left out.

    Raises UserError if there is none, or if one is no data: of a folder that `gpt2c prepare` has not completed, or that
    lies in another, of a run, a tokenizer, or a model.
    """
    with reading("data", path):
        if path.is_dir():
            found = list(_below(path))
        else:
            path.stat()
            found = [path]
    if not found:
        raise UserError(f"{path} is an empty folder: expected text files or token shards (.bin, .npy)")
    for file in found:
        if file.name in MADE:
            raise UserError(f"{file} belongs to {MADE[file.name]}, it is no data: keep it in another folder")
        with reading("data", file):
            require_file("data", file)
            if is_pointer(file):
                raise UserError(f"cannot read the data {file}: {PULL}")
        if file.name == manifest.NAME and manifest.is_one(file):
            manifest.require_complete(file.parent)
            if file.parent != path:
                raise UserError(f"{file} says what `gpt2c prepare` has written there: give {file.parent} alone")
    return found


def require_outside(out: Path, inputs: Sequence[str]) -> None:
    """UserError if `out` lies in a folder of these, so that what is written there would be read."""
    for name in inputs:
        if not Path(name).is_dir() or not out.resolve().is_relative_to(Path(name).resolve()):
            continue
        if not _is_hidden(out.resolve().relative_to(Path(name).resolve())):
            raise UserError(
                f"--out {out} lies in {name}, so that what is written there would be read: choose another folder "
                "with --out"
            )


def _below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not _is_hidden(path.relative_to(folder)):
            yield path


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
