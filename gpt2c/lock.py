"""One process at a time works in a folder: a lock that the system releases when its holder ends, killed or not."""

from __future__ import annotations

import errno
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gpt2c.errors import UserError
from gpt2c.files import writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"  # hidden, so that it is neither data nor a result; it holds the holder's pid and host
UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}  # by the folder's file system


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Have `folder` for this process alone inside the block. It is made, and taken away again if it stays empty.

    doing: what the holder does there, `training in` say, for the sentence that another process gets.
    Raises UserError if another process holds the folder, or if the lock cannot be written.
    """
    with ExitStack() as stack:
        with writing(folder):
            stack.callback(_remove_empty, _make(folder))
            file = stack.enter_context(_open_locked(folder, doing))
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        try:
            yield
        finally:
            # Before it is released: who waits for it with the file open finds that it has gone, and makes another.
            with suppress(OSError):
                (folder / NAME).unlink()


@contextmanager
def _open_locked(folder: Path, doing: str) -> Iterator[int]:
    """A descriptor of the folder's lock file, locked."""
    path = folder / NAME
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(file, folder, doing)
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                yield file
                return
        finally:
            os.close(file)


def _lock(file: int, folder: Path, doing: str) -> None:
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "this system has no such locks")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _held(file, folder, doing) from None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _lock_by_name(file, folder, doing)


def _lock_by_name(file: int, folder: Path, doing: str) -> None:
    """Where files cannot be locked, the file says who is at work; a process of another machine cannot be asked."""
    pid, host = _holder(file)
    if not pid:
        return
    if host != socket.gethostname():
        warnings.warn(
            f"{folder} cannot be locked, and process {pid} on host {host} has not left it: make sure that it has ended",
            stacklevel=2,
        )
    elif _is_alive(pid):
        raise _held(file, folder, doing)


def _held(file: int, folder: Path, doing: str) -> UserError:
    pid, host = _holder(file)
    who = f"another process, pid {pid}, on host {host}," if pid else "another process"
    return UserError(f"{who} is {doing} {folder}: wait for it, stop it, or choose another folder with --out")


def _holder(file: int) -> tuple[int, str]:
    """The pid and the host that the lock file names; 0 if it names none."""
    pid, _, host = os.pread(file, 1024, 0).decode(errors="replace").strip().partition(" ")
    return (int(pid), host) if pid.isdecimal() else (0, "")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _make(folder: Path) -> list[Path]:
    """Make the folder and those above it; returns those that were not there, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):  # one that is not empty stays, and those above it
        for folder in folders:
            folder.rmdir()
