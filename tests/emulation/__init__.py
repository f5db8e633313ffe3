"""The CUDA kernels' own source on this CPU: compiled by g++ for the emulator of this folder, and called like the
kernels of tests/remote."""

from __future__ import annotations

import functools
import importlib.util
import shutil
from pathlib import Path
from typing import NamedTuple

import on_gpu
import remote
import torch
from torch import Tensor

FOLDER = Path(__file__).parent
SEED = 1  # of the order in which threads take turns


def cuda_headers() -> Path | None:
    """The folder of CUDA's headers: of the toolkit, or of PyPI's nvidia-cuda-runtime and nvidia-cuda-crt."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    candidates = [Path(nvcc).resolve().parents[1] / "include", Path("/usr/local/cuda/include")]
    spec = importlib.util.find_spec("nvidia")
    for location in spec.submodule_search_locations if spec else ():
        candidates += sorted(Path(location).glob("cu*/include"), reverse=True)
    return next((c for c in candidates if (c / "cuda_runtime_api.h").exists() and (c / "crt").is_dir()), None)


@functools.cache
def build() -> Path:
    headers = cuda_headers()
    assert headers, "CUDA's headers not found: install them (pip install nvidia-cuda-runtime nvidia-cuda-crt)"
    return remote.build("emulation", f"-DGPT2C_CUDA_HEADERS={headers}", source=FOLDER)


def emulated(options: str = f"shuffled:{SEED}") -> Emulated:
    """options: the order of a block's threads and more, as tests/emulation/backend.cpp has it."""
    return Emulated([build(), options])


class SharedAccesses(NamedTuple):
    """How a kernel accessed shared memory at one line of the source."""

    kernel: str
    line: str
    accesses: int  # of warps
    conflicts: int  # cycles beyond one for each 128 bytes


class Emulated(on_gpu.GpuBackend, remote.Remote):
    """The CUDA backend as gpt2c._native sees it: its tensors are the CPU's, all else is what tensors on a GPU get."""

    def run(self, kernel: str, *args: object) -> int:
        return self._run(kernel, *args, torch.get_num_threads())

    def launch(self, kernel: str, *tensors: Tensor) -> None:
        """Launches a kernel that only tests have (tests/emulation/*.cu)."""
        self._run(kernel, *tensors)

    def reached_sites(self) -> list[str]:
        """The barriers and waits that kernels have come to so far: "FILE:LINE@KERNEL"."""
        return self._lines("reached_sites")

    def launched_kernels(self) -> list[str]:
        """The kernels that were launched so far, by name and template arguments."""
        return self._lines("launched_kernels")

    def shared_accesses(self) -> list[SharedAccesses]:
        """Since the last call; nothing unless the options say "conflicts"."""
        lines = [line.split("\t") for line in self._lines("conflict_counts")]
        return [SharedAccesses(kernel, at, int(accesses), int(n)) for kernel, at, accesses, n in lines]

    def _lines(self, question: str) -> list[str]:
        text = torch.empty(1 << 20, dtype=torch.uint8)
        length = self._run(question, text)
        assert length >= 0, f"the answer to {question} is too long"
        return bytes(text[:length].numpy()).decode().splitlines()
