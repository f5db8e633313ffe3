"""What csrc/cuda/cuda.cmake decides and says, and what a build with CUDA kernels is where there is no GPU."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import on_gpu
import pytest
import remote
import torch
from torch._subclasses import FakeTensorMode

import gpt2c
from gpt2c import _native

CUDA_CMAKE = remote.ROOT / "csrc" / "cuda" / "cuda.cmake"
KERNELS_WITHOUT_CUDA = {"checksum", "cross_entropy_count", "decode", "matmul"}  # csrc/kernels.h says why
needs_cuda_build = pytest.mark.skipif(_native.CUDA is None, reason="gpt2c was built without CUDA kernels (no nvcc)")


def run_cmake(*args: str, **environment: str) -> subprocess.CompletedProcess:
    command = [remote.cmake(), *args]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def default_architectures(folder: Path, nvcc: str, gpus: str) -> str:
    """What is built for by nvcc of that version on a machine whose nvidia-smi writes `gpus`."""
    smi = folder / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\nprintf '{gpus}'\n")
    smi.chmod(0o755)
    script = folder / "script.cmake"
    script.write_text(
        f"set(CMAKE_CUDA_COMPILER_VERSION {nvcc})\ninclude({CUDA_CMAKE})\n"
        'gpt2c_architectures(architectures)\nmessage(STATUS "architectures: ${architectures}")\n'
    )
    done = run_cmake("-DGPT2C_CUDA=OFF", "-P", str(script), PATH=f"{folder}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    return done.stdout.split("architectures: ")[1].strip()


@pytest.mark.parametrize(
    ("nvcc", "gpus", "expected"),
    [
        ("12.0.140", "", "75-real;80-real;86-real;89-real;90"),
        ("12.8.61", "", "75-real;80-real;86-real;89-real;90-real;100-real;120"),
        ("13.0.88", "8.6\\n", "86"),
        ("13.0.88", "7.5\\n", "75-real"),  # its PTX would trap on newer GPUs
        ("13.0.88", "12.0\\n9.0\\n9.0\\n", "90-real;120"),
        ("12.0.140", "12.0\\n", "75-real;80-real;86-real;89-real;90"),  # this nvcc does not know the GPU, PTX will do
        ("13.0.88", "8.6\\n7.0\\n", "75-real;80-real;86-real;89-real;90-real;100-real;120"),
        ("13.0.88", "NVIDIA-SMI has failed\\n", "75-real;80-real;86-real;89-real;90-real;100-real;120"),
    ],
)
def test_architectures_are_those_of_this_machine(tmp_path: Path, nvcc: str, gpus: str, expected: str) -> None:
    assert default_architectures(tmp_path, nvcc, gpus) == expected


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a module _ext that takes cuda.cmake in."""
    (tmp_path / "ext.cpp").write_text("")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(ext LANGUAGES CXX)\nadd_library(_ext MODULE ext.cpp)\n"
        f"include({CUDA_CMAKE})\n"
    )
    return tmp_path


def configure(project: Path, choice: str, **environment: str) -> subprocess.CompletedProcess:
    return run_cmake(f"-DGPT2C_CUDA={choice}", "-S", str(project), "-B", str(project / "build"), **environment)


def said(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if "gpt2c:" in line]


def test_without_nvcc(project: Path) -> None:
    """AUTO builds for the CPU, ON is an error; what was not found the last time is looked for again."""
    nowhere = str(project / "nvcc")
    problem = "no working nvcc was found (PATH, CUDACXX)"
    done = configure(project, "AUTO", CUDACXX=nowhere)
    assert (done.returncode, said(done.stdout)) == (0, [f"-- gpt2c: {problem}, only CPU kernels are built"])
    done = configure(project, "ON", CUDACXX=nowhere)
    assert (done.returncode, said(done.stderr)) == (1, [f"gpt2c: GPT2C_CUDA=ON, but {problem}"])


def test_switched_off(project: Path) -> None:
    done = configure(project, "OFF")
    assert (done.returncode, said(done.stdout)) == (0, ["-- gpt2c: GPT2C_CUDA=OFF, only CPU kernels are built"])
    assert "CUDA compiler" not in done.stdout


@needs_cuda_build
def test_every_kernel_is_bound() -> None:
    kernels = set(re.findall(r"X\((\w+)\) *\\?\n", (remote.ROOT / "csrc" / "kernels.h").read_text()))
    assert len(kernels) == 16 and all(hasattr(_native._ext, name) for name in kernels)
    assert {name for name in kernels if not hasattr(_native.CUDA, name)} == KERNELS_WITHOUT_CUDA


@needs_cuda_build
def test_cudart_stays_inside() -> None:
    """torch brings another libcudart along; neither may take the other's functions."""
    library = ctypes.CDLL(_native._ext.__file__)
    with pytest.raises(AttributeError):
        _ = library.cudaLaunchKernel


@needs_cuda_build
@pytest.mark.skipif(not on_gpu.gpu_problem(), reason="this machine has a GPU")
def test_a_build_with_cuda_says_that_there_is_no_gpu() -> None:
    assert "no GPU: " in _native.cuda_status()
    with pytest.raises(RuntimeError, match="^GPU 0: "):
        _native.CUDA.set_stream(0, 0)


def test_a_gpus_tensor_needs_a_build_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "CUDA", None)
    with FakeTensorMode(), pytest.raises(ValueError, match="gelu: x is on cuda:0, expected the CPU: gpt2c was built "):
        gpt2c.ops.gelu(torch.empty(3, device="cuda:0"))
    assert _native.cuda_status() == "not built (see the README's Install)"


def test_other_devices_are_refused() -> None:
    with FakeTensorMode(), pytest.raises(ValueError, match="gelu: x is on xpu:0, expected the CPU or CUDA"):
        gpt2c.ops.gelu(torch.empty(3, device="xpu:0"))


def test_a_kernel_is_queued_on_torchs_stream_of_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for torch's device and stream, and for the module."""
    log = []

    class Device:
        def __init__(self, gpu: int) -> None:
            self.gpu = gpu

        def __enter__(self) -> None:
            log.append(f"enter {self.gpu}")

        def __exit__(self, *error: object) -> None:
            log.append(f"leave {self.gpu}")

    class Module:
        set_stream = staticmethod(lambda gpu, stream: log.append(f"GPU {gpu} stream {stream}"))
        gelu_forward = staticmethod(lambda *values: log.append(f"gelu_forward {values}"))

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda gpu: SimpleNamespace(cuda_stream=100 + gpu))
    monkeypatch.setattr(_native, "CUDA", Module)
    monkeypatch.setattr(_native, "_gpu_of", lambda args: 1)
    _native.call("gelu_forward", torch.float32, 7)
    assert log == ["enter 1", "GPU 1 stream 101", f"gelu_forward (0, 7, {torch.get_num_threads()})", "leave 1"]
