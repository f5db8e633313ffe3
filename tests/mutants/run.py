"""A changed package in a folder of its own, and whether the tests notice it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from mutants import ROOT, Mutant

BUILD = ROOT / "build" / "mutants"
LIMIT = 600  # seconds after which a test file counts as stuck


class ToolFailed(Exception):
    """A compiler or CMake has failed; the message holds what it said."""


@dataclass(frozen=True)
class Outcome:
    """code: pytest's exit code (0: passed, 1: a test failed, else it did not run), or None where it was stuck.
    tail: what it said last."""

    code: int | None
    seconds: float
    tail: str

    @property
    def failed(self) -> str:
        """The first test that failed, or why the tests ended; empty if they passed."""
        if self.code == 0:
            return ""
        found = re.search(r"^(?:FAILED|ERROR) \S*test_\w+\.py::(\S+)", self.tail, re.MULTILINE)
        return found[1] if found else f"no end within {LIMIT} s" if self.code is None else f"exit code {self.code}"


class Kernels:
    """The CPU kernels, built once without a change; a change then costs one object file, of the best ISA."""

    def __init__(self) -> None:
        import pybind11  # of the build's requirements; only needed here

        self.isas = _ask_package("from gpt2c import _native; print(*_native.available_isas())").split()
        configure = ["cmake", "-S", ROOT, "-B", BUILD, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", "-DGPT2C_CUDA=OFF"]
        configure += ["-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
        _run([*configure, f"-DPython_EXECUTABLE={sys.executable}"])
        _run(["cmake", "--build", BUILD, "--parallel", str(os.cpu_count())])
        commands = json.loads((BUILD / "compile_commands.json").read_text())
        self._commands = [shlex.split(entry["command"]) for entry in commands]

    def other_backends(self) -> str:
        """pytest's -k that leaves out what a change does not reach: other ISAs, and CUDA."""
        return " and ".join(f"not {name}" for name in ["cuda", *(f"cpu-{isa}" for isa in self.isas[:-1])])

    def build(self, mutant: Mutant, folder: Path) -> None:
        """The extension with the change, in the place of folder/gpt2c's. ToolFailed if it does not compile."""
        shutil.copytree(ROOT / "csrc", folder / "csrc")
        (folder / mutant.file).write_text(mutant.changed(), encoding="utf-8")
        source = mutant.file if mutant.file.endswith(".cpp") else f"csrc/cpu/{mutant.test}.cpp"
        command, object_file = self._command_of(source)
        changed = folder / "changed.o"
        command = [word.replace(f"{ROOT}/csrc", f"{folder}/csrc") for word in command]
        _run([str(changed) if word == object_file else word for word in command], cwd=BUILD)
        # The linker takes the changed object's kernels first, and then leaves the archive's alone.
        link = [command[0], "-shared", "-o", _extension(folder / "gpt2c"), self._command_of("csrc/bindings.cpp")[1]]
        _run([*link, changed, "libgpt2c_kernels.a", "-ldl"], cwd=BUILD)

    def _command_of(self, source: str) -> tuple[list[str], str]:
        """The command that compiles the source, of kernels for the best ISA, and its object file."""
        found = [command for command in self._commands if command[-1] == str(ROOT / source)]
        if len(found) > 1:
            found = [command for command in found if f"-DGPT2C_ISA={self.isas[-1]}" in command]
        return found[0], found[0][found[0].index("-o") + 1]


def copy_package(folder: Path) -> None:
    """gpt2c as it is, with the extension that this Python has, into folder/gpt2c."""
    shutil.copytree(ROOT / "gpt2c", folder / "gpt2c", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(_ask_package("import gpt2c._ext as e; print(e.__file__)"), folder / "gpt2c")


def run_test(test: str, folder: Path, chosen: str) -> Outcome:
    """tests/test_{test}.py up to its first failure, with the package of `folder`; chosen: pytest's -k."""
    words = [str(ROOT / "tests" / f"test_{test}.py"), "-x", "-q", "-p", "no:cacheprovider", "--tb=line", f"-k={chosen}"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    started = time.monotonic()
    with open(folder / "log.txt", "w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *words], cwd=folder, env=environment, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # all of its processes have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.seek(0)
        return Outcome(code, time.monotonic() - started, log.read()[-4000:])


def _ask_package(program: str) -> str:
    """What a Python program prints about the package as it is installed."""
    return _run([sys.executable, "-c", program], cwd=tempfile.gettempdir()).strip()


def _extension(package: Path) -> Path:
    """The file of the compiled extension in a package's folder."""
    (found,) = package.glob("_ext*.so")
    return found


def _run(command: list[object], cwd: Path | str = ROOT) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise ToolFailed(f"{' '.join(map(str, command[:3]))} ... failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout
