"""From the command's INPUTs to sources, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpt2c.data import shards
from gpt2c.data.packed import inner_suffix
from gpt2c.data.rows import HUB, Hub, JsonLines, Parquet
from gpt2c.data.sources import File, Source, StandardInput, TextFile
from gpt2c.errors import UserError
from gpt2c.files import reading

STANDARD_INPUT = "-"


def open_inputs(inputs: Sequence[str], field: str) -> list[Source]:
    """The sources: a file by its name, a folder's files in sorted order without hidden ones, `-`, `hf:NAME[:CONFIG]`.

    Raises UserError if there is none, one is missing, or one holds tokens already.
    """
    sources: list[Source] = []
    for name in inputs:
        if name == STANDARD_INPUT:
            sources.append(StandardInput(name))
        elif name.startswith(HUB):
            sources.append(Hub(name, field))
        else:
            sources += [_file(path, field) for path in files(Path(name))]
    if not sources:
        raise UserError("there is nothing to prepare: give at least one file, folder, `-` or hf:NAME")
    return sources


def files(path: Path) -> list[Path]:
    """`path` itself, or all files below it in sorted order, hidden ones left out. UserError if there is none."""
    with reading("data", path):
        if not path.is_dir():
            path.stat()
            return [path]
        found = sorted(p for p in path.rglob("*") if p.is_file())
    found = [p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    if not found:
        raise UserError(f"{path} is an empty folder: expected text files or token shards (.bin, .npy)")
    return found


def _file(path: Path, field: str) -> File:
    suffix = inner_suffix(path)
    if suffix in shards.SUFFIXES:
        raise UserError(f"{path} is a token shard already: give it to gpt2c train as --data")
    if suffix in (".jsonl", ".ndjson"):
        return JsonLines(path, field)
    return Parquet(path, field) if suffix == ".parquet" else TextFile(path)
