"""How this command is typed, for the commands that it tells the user to type next."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def program() -> str:
    """`gpt2c` where the shell finds this very program under that name, else its path as it was started (what `make` and
    virtual environments that are not active need), or `python -m gpt2c` if it was started so."""
    started = Path(sys.argv[0])
    if started.name == "__main__.py" and started.parent.name == "gpt2c":
        return f"{_typed(Path(sys.executable))} -m gpt2c"
    if started.stem == "gpt2c" and started.exists():
        return _typed(started)
    return "gpt2c"


def quoted(path: Path | str) -> str:
    """A path as an argument to type: quoted for a shell, and not to be taken for a flag."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def _typed(path: Path) -> str:
    """The name alone if the shell's search ends at this file, else the shorter of its two paths."""
    found = shutil.which(path.name)
    if found and os.path.realpath(found) == os.path.realpath(path) and _prefix(found) == _prefix(path):
        return path.name
    absolute, relative = os.path.abspath(path), os.path.relpath(path)
    return shlex.quote(relative if len(relative) < len(absolute) else absolute)


def _prefix(path: Path | str) -> str:
    """The folder of the program: links to one interpreter in two virtual environments are two programs."""
    return os.path.dirname(os.path.abspath(path))
