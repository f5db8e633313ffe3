"""Reading and writing files: failures are one sentence, and what is written appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gpt2c.errors import UserError, reason

POINTER = b"version https://git-lfs.github.com/spec/"
PULL = "it is only Git LFS's pointer to the file, which `git lfs pull` fetches"


def is_pointer(path: Path) -> bool:
    """Whether a file is what a clone without Git LFS has in a large file's place. Raises OSError."""
    if not len(POINTER) < path.stat().st_size < 1024:
        return False
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def require_file(what: str, path: Path) -> None:
    """UserError for what is no file: a pipe can be read only once, a device may have no end. Raises OSError."""
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise UserError(f"cannot read the {what} {path}: it is a folder, expected a file")
    kind = "a pipe, which can be read only once" if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else "no file"
    raise UserError(f"cannot read the {what} {path}: it is {kind}; write what it gives into a file")


def why(path: Path, error: BaseException) -> str:
    """Why the file cannot be read, as a phrase: `reason(error)`, or that it is only a pointer to the file."""
    try:
        return PULL if is_pointer(path) else reason(error)
    except OSError:
        return reason(error)


@contextmanager
def reading(what: str, path: Path) -> Iterator[None]:
    """Turn a failed read of `path` into a UserError that names it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read the {what} {path}: {why(path, error)}") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write (full disk, missing permission, file size limit) of `path` into a UserError that names it."""
    try:
        yield
    # safetensors reports a failed write as its own error, with the operating system's words inside.
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write {path}: {reason(error)}; make room or choose another folder with --out"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of a temporary file to write, then put it in `path`'s place at once.

    After a crash or on a full disk `path` holds the old contents or the new. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes files that only their owner can read
        fsync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync(path.parent)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """As safetensors' save_file with the metadata that transformers expects, of tensors of any layout, which may share
    memory: each is stored whole under each of its names. Raises OSError or SafetensorError."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        whole = tensor.detach().contiguous()
        if whole.untyped_storage().data_ptr() in seen:
            whole = whole.clone()
        seen.add(whole.untyped_storage().data_ptr())
        apart[name] = whole
    save_file(apart, path, metadata={"format": "pt"})


@contextmanager
def making_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill, then make it `path`, which must not exist, at once. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            fsync(file)
        fsync(temporary)
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    fsync(path.parent)


def write_atomically(path: Path, contents: bytes) -> None:
    """Replace `path` by a file of these contents at once, as `replacing` does. Raises OSError."""
    with replacing(path) as temporary:
        temporary.write_bytes(contents)


def fsync(path: Path) -> None:
    """Wait until a file's contents, or a folder's entries, are on the disk."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return  # Windows: folders cannot be opened, renames are journalled
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
