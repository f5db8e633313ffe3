"""The programs that python/gpu_check.py starts, and what their output says."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Op: the test module that checks its kernels.
OPS = {
    "attention": "attention",
    "layernorm": "layernorm",
    "residual_layernorm": "layernorm",
    "bias_gelu": "gelu",
    "cross_entropy": "cross_entropy",
    "embedding": "embedding",
    "adamw": "adamw",
    "grad_norm": "grad_norm",
}
MODULES = tuple(dict.fromkeys(OPS.values()))
MODULES_OF_NO_OP = ("linear_cross_entropy", "model", "cuda")
PYTEST = Path(sys.executable).with_name("pytest")  # `python -m pytest` would import the sources, not what is installed
SANITIZER_TOOLS = ("memcheck", "racecheck")


@dataclass
class Counts:
    """What pytest said of one test module."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)  # the names of those that failed
    problem: str = ""  # why there is no count, if there is none


def run(*command: str | Path, timeout: float) -> tuple[int, str]:
    """Exit code and output of a program in the repository's root; -1 and a sentence if it is not there or too slow."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", timeout=timeout,
        )  # fmt: skip
    except FileNotFoundError:
        return -1, f"{command[0]} was not found"
    except subprocess.TimeoutExpired:
        return -1, f"{command[0]} did not end within {timeout:.0f} s"
    return done.returncode, done.stdout


def install(timeout: float) -> tuple[int, str]:
    """Builds and installs this checkout with CUDA kernels, and pytest for its tests; packages that are there already
    stay as they are. An error where there is no nvcc."""
    define = "cmake.define.GPT2C_CUDA=ON"
    return run(sys.executable, "-m", "pip", "install", "-C", define, ".", "pytest", timeout=timeout)


def pytest_command(module: str) -> list[str]:
    """The module's tests on the backend `cuda`; all of those in tests/test_cuda.py, which know no other."""
    on_gpu = [] if module == "cuda" else ["--backends", "gpu", "-k", "[cuda"]  # the backend comes first in a test's id
    return [str(PYTEST), "-q", "-rfE", *on_gpu, f"tests/test_{module}.py"]


def run_tests(module: str, timeout: float) -> Counts:
    return parse_pytest(*run(*pytest_command(module), timeout=timeout))


def parse_pytest(code: int, output: str) -> Counts:
    """Counts from the last line of `pytest -q -rfE`, names from its summary."""
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", last_line(output))}
    failures = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    failed = counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0)
    tests = Counts(counts.get("passed", 0), failed, counts.get("skipped", 0), failures)
    if code not in (0, 1) or (code == 1) != bool(failed):
        tests.problem = f"pytest ended with code {code}: {last_line(output)}"
    return tests


def find_sanitizer() -> str | None:
    """compute-sanitizer of the PATH or of the CUDA toolkit's usual place."""
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


def run_sanitizer(program: str, tool: str, module: str, timeout: float) -> int | str:
    """How many errors the tool finds in the module's tests, or why that is not known."""
    command = [program, "--tool", tool, "--target-processes", "all", *pytest_command(module)]
    return parse_sanitizer(*run(*command, timeout=timeout))


def parse_sanitizer(code: int, output: str) -> int | str:
    """The errors that compute-sanitizer counted, or a sentence if it did not come to its summary."""
    memory = re.findall(r"ERROR SUMMARY: (\d+) error", output)
    races = re.findall(r"RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) errors?, \d+ warnings?\)", output)
    if not memory and not races:
        return f"compute-sanitizer ended with code {code}: {last_line(output)}"
    return sum(map(int, memory + races))


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")


def one_line(*command: str) -> str:
    """The first line a program writes, or "unknown"."""
    code, output = run(*command, timeout=60)
    return output.strip().splitlines()[0] if code == 0 and output.strip() else "unknown"
