"""A folder is one process's at a time, and nothing that a killed one leaves stands in the way."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import socket
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from gpt2c import lock
from gpt2c.errors import UserError
from gpt2c.lock import locked


def hold(folder: Path, told: Connection) -> None:
    """Of another process: hold the lock until it is killed."""
    with locked(folder, "training in"):
        told.send(os.getpid())
        signal.pause()


def holder(folder: Path) -> multiprocessing.process.BaseProcess:
    context = multiprocessing.get_context("fork")  # at once; it does nothing but hold the lock
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(folder, theirs), daemon=True)
    process.start()
    assert ours.recv() == process.pid
    return process


def test_another_process_is_named_and_a_kill_releases(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = holder(out)
    expected = f"another process, pid {process.pid}, on host {socket.gethostname()}, is training in {out}: "
    for _ in range(2):  # a refusal changes nothing
        with pytest.raises(UserError) as error, locked(out, "training in"):
            pass
        assert str(error.value).startswith(expected)
    process.kill()
    process.join()
    assert (out / lock.NAME).exists()
    with locked(out, "training in"):
        (out / "a").touch()
    assert [path.name for path in out.iterdir()] == ["a"]


def test_a_folder_that_stays_empty_goes_again(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    for out in (tmp_path / "a" / "b", tmp_path / "kept"):
        with locked(out, "preparing"):
            assert out.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_the_same_process_twice(tmp_path: Path) -> None:
    with locked(tmp_path, "preparing"), pytest.raises(UserError, match=f"pid {os.getpid()}, .* is preparing"):
        with locked(tmp_path, "preparing"):
            pass


def test_who_has_waited_with_the_old_file_open_gets_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is gone between its opening and its lock: two holders of two files would be wrong."""
    attempts = []
    real = lock.fcntl.flock

    def flock(file: int, operation: int) -> None:
        if not attempts:
            (tmp_path / lock.NAME).unlink()
        attempts.append(file)
        real(file, operation)

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with locked(tmp_path, "preparing"):
        assert len(attempts) == 2 and (tmp_path / lock.NAME).exists()
        with pytest.raises(UserError), locked(tmp_path, "preparing"):
            pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, None])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock, "fcntl", number and type("fcntl", (), {"flock": flock, "LOCK_EX": 0, "LOCK_NB": 0}))
    process = holder(tmp_path)
    with pytest.raises(UserError, match=f"pid {process.pid}, "), locked(tmp_path, "training in"):
        pass
    process.kill()
    process.join()
    with locked(tmp_path, "training in"):
        pass
    (tmp_path / lock.NAME).write_text("12 elsewhere\n")
    with pytest.warns(UserWarning, match="process 12 on host elsewhere"), locked(tmp_path, "training in"):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*file"), locked(tmp_path / "file" / "sub", "preparing"):
        pass
