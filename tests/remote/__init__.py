"""Kernels in another process: built for another architecture and run under its emulator, or built with sanitizers.

`Remote(...).call` has the contract of `gpt2c._native.call`: the storages of all tensors travel to the process and back.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gpt2c import _native

ROOT = Path(__file__).resolve().parents[2]


def cmake() -> str:
    """The one that `make test` installs beside this Python, or the system's."""
    found = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found, "cmake not found: install it (pip install cmake)"
    return found


def build(name: str, *options: str, source: Path = ROOT) -> Path:
    """The kernel server of the CMake project `source`, built with `options` below build/; returns the program."""
    folder = ROOT / "build" / f"remote-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    configure = [cmake(), "-S", source, "-B", folder, *options]
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tests run in several processes
        for command in (configure, [cmake(), "--build", folder, "--parallel", "2"]):
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            assert done.returncode == 0, f"{' '.join(map(str, command))} failed:\n{done.stdout}"
    return folder / "kernel_server"


def can_emulate_neon() -> bool:
    return all(shutil.which(tool) for tool in ("aarch64-linux-gnu-g++", "qemu-aarch64"))


def neon() -> Remote:
    cross = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_EXE_LINKER_FLAGS=-static")
    program = build("neon", "-DGPT2C_PYTHON=OFF", "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++", *cross)
    return Remote(["qemu-aarch64", program, "neon"])


def sanitized(isa: str) -> Remote:
    return Remote([build("sanitized", "-DGPT2C_PYTHON=OFF", "-DGPT2C_SANITIZE=ON"), isa])


class Remote:
    def __init__(self, command: list[str | Path]) -> None:
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, bufsize=0
        )

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        """Lets gpt2c call this process's kernels."""
        patch.setattr(_native, "call", self.call)
        patch.setattr(_native, "count_targets", self.count_targets)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()
        self.errors.close()

    def count_targets(self, targets: Tensor, V: int, ignore_index: int) -> int:
        return self._run("cross_entropy_count", targets, targets.numel(), V, ignore_index)

    def call(self, kernel: str, *args: object) -> int:
        return self._run(kernel, *args, torch.get_num_threads())

    def _run(self, kernel: str, *args: object) -> int:
        storages: dict[int, torch.UntypedStorage] = {}
        words = [word for arg in args for word in _words(arg, storages)]
        buffers = [(_memory(storage), storage.nbytes()) for storage in storages.values()]
        self._write(struct.pack("<q", len(kernel)) + kernel.encode() + struct.pack("<q", len(buffers)))
        for view, size in buffers:
            self._write(struct.pack("<q", size))
            self._write(view)
        self._write(struct.pack("<q", len(words)) + b"".join(words))
        (length,) = struct.unpack("<q", self._read(8))
        if length:
            raise AssertionError(f"{kernel}: {self._read(length).decode()}")
        (result,) = struct.unpack("<q", self._read(8))
        for view, size in buffers:
            view[:] = self._read(size)
        return result

    def _write(self, data: bytes | memoryview) -> None:
        data = memoryview(data)
        while len(data):
            try:
                data = data[self.process.stdin.write(data) :]
            except BrokenPipeError:
                self._died()

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = self.process.stdout.read(size)
            if not part:
                self._died()
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _died(self) -> None:
        self.process.wait(timeout=60)
        self.errors.seek(0)
        report = self.errors.read().decode(errors="replace")
        raise AssertionError(f"the kernel server ended with code {self.process.returncode}:\n{report}")


def _memory(storage: torch.UntypedStorage) -> memoryview:
    """The storage's memory, writable."""
    tensor = torch.empty(0, dtype=torch.uint8).set_(storage)
    return memoryview(tensor.numpy()).cast("B") if storage.nbytes() else memoryview(bytearray())


def _words(arg: object, storages: dict[int, torch.UntypedStorage]) -> list[bytes]:
    if arg is None:
        return [struct.pack("<q", 0)]
    if isinstance(arg, Tensor):
        storage = arg.untyped_storage()
        storages.setdefault(storage.data_ptr(), storage)
        buffer = list(storages).index(storage.data_ptr())
        return [struct.pack("<q", (buffer + 1 << 40) + arg.storage_offset() * arg.element_size())]
    if isinstance(arg, torch.dtype):
        return [struct.pack("<q", _native.DTYPE_NUMBERS[arg])]
    if isinstance(arg, float):
        return [struct.pack("<d", arg)]
    if isinstance(arg, (list, tuple)):
        items = [word for item in arg for word in _words(item, storages)]
        tensors = isinstance(arg, list) and all(isinstance(item, Tensor) for item in arg)
        return [struct.pack("<q", len(arg)), *items] if tensors else items
    return [struct.pack("<q", int(arg))]
