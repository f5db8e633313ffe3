"""The name of this command in what it tells the user to type next."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gpt2c.program import program, quoted


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("gpt2c", "python"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    return folder


def test_the_command_is_typed_as_it_was_started(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [".venv/bin/gpt2c", "train"])
    assert program() == ".venv/bin/gpt2c"
    monkeypatch.setattr(sys, "argv", [str(bin_folder / "gpt2c"), "train"])  # as a shell's search hands it over
    assert program() == ".venv/bin/gpt2c"
    monkeypatch.setenv("PATH", str(bin_folder))
    assert program() == "gpt2c"
    other = bin_folder.parent / "other"
    other.mkdir()
    (other / "gpt2c").symlink_to(bin_folder / "gpt2c")
    monkeypatch.setenv("PATH", str(other))  # another installation comes first
    assert program() == ".venv/bin/gpt2c"


def test_as_a_module(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/gpt2c/__main__.py", "train"])
    monkeypatch.setattr(sys, "executable", str(bin_folder / "python"))
    assert program() == ".venv/bin/python -m gpt2c"
    monkeypatch.setenv("PATH", str(bin_folder))
    assert program() == "python -m gpt2c"


def test_from_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["python/train.py"])
    assert program() == "gpt2c"


def test_paths_are_typed_as_a_shell_takes_them() -> None:
    assert [quoted(Path(name)) for name in ("runs/a", "a b", "-x")] == ["runs/a", "'a b'", "./-x"]
