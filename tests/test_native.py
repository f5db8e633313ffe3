"""Which backend is taken, and what it says when it cannot be."""

import os
import subprocess
import sys
import tempfile
import time

import pytest
import torch

import gpt2c
from gpt2c import _native


def forced(isa: str, *args: str) -> subprocess.CompletedProcess:
    program = "import torch, gpt2c; gpt2c.ops.gelu(torch.ones(1)); print(gpt2c._native.active_isa())"
    environment = {**os.environ, "GPT2C_FORCE_ISA": isa}
    return run_python(*(args or ("-c", program)), env=environment)


def run_python(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    # Not in the repository, where `-c` would import the sources instead of what is installed.
    command, elsewhere = [sys.executable, *args], tempfile.gettempdir()
    return subprocess.run(command, env=env, cwd=elsewhere, capture_output=True, text=True)


def test_best_isa_is_taken() -> None:
    candidates = [isa for isa in _native.available_isas() if isa != "avx2x16"]
    assert forced("").stdout.strip() == candidates[-1]


@pytest.mark.parametrize("isa", _native.available_isas())
def test_forced_isa(isa: str) -> None:
    assert forced(isa).stdout.strip() == isa


def test_unknown_isa() -> None:
    problem = "GPT2C_FORCE_ISA: the ISA 'sse9' is not available on this machine, expected one of scalar, "
    assert f"ValueError: {problem}" in forced("sse9").stderr
    done = forced("sse9", "-c", "import sys; from gpt2c.cli import main; sys.exit(main(['info']))")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {problem}") and len(done.stderr.splitlines()) == 1


def test_scalar_is_always_there() -> None:
    assert "scalar" in _native.available_isas()


def test_sanitizer_sees_an_overrun(backend: str) -> None:
    if not backend.startswith("sanitized"):
        pytest.skip("only kernels built with a sanitizer are asked (--backends sanitized)")
    x = torch.ones(8)
    with pytest.raises(AssertionError, match="AddressSanitizer"):
        _native.call("gelu_forward", x.dtype, x, None, torch.empty(7), 1, 8, False)


def test_freed_storage_is_refused() -> None:
    x = torch.ones(1000)
    x.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=r"a tensor of shape \(1000,\) has no memory, its storage has been freed"):
        gpt2c.ops.gelu(x)


def test_no_memory_is_an_error_that_can_be_survived() -> None:
    # One too large scratch buffer, asked for inside a parallel region.
    program = """
import resource, torch, gpt2c
q = torch.ones(1, 4, 4, 256)
k = torch.ones(1, 4, 100_000, 256)
o, lse = torch.ops.gpt2c.attention_forward(q, k, k, False, 1.0, 0.0, None, None)
room = 2 * k.nbytes + 50_000_000  # for dk and dv, but not for their sums in scratch memory
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + room, resource.RLIM_INFINITY))
try:
    torch.ops.gpt2c.attention_backward(o, q, k, k, o, lse, False, 1.0, 0.0, None, None)
except MemoryError:
    print("caught")
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
gpt2c.ops.gelu(torch.ones(100_000))
print("alive")
"""
    done = run_python("-c", program)
    assert (done.returncode, done.stdout.split()) == (0, ["caught", "alive"]), done.stderr


def test_keep_heap_is_public() -> None:
    assert gpt2c.keep_heap is _native.keep_heap


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings(
    "ignore:.*fork:DeprecationWarning"
)  # Python's own, that a process with threads may deadlock
def test_a_forked_child_computes() -> None:
    """On one thread: the team of threads that its parent has used is gone, and would be waited for."""
    x = torch.randn(1000, 300)
    expected = gpt2c.ops.gelu(x)
    child = os.fork()
    if child == 0:
        (x @ x.t()).exp()  # torch's regions, too
        os._exit(0 if torch.equal(gpt2c.ops.gelu(x), expected) else 3)
    ended, deadline = 0, time.monotonic() + 60
    while not ended and time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if not ended:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended and os.waitstatus_to_exitcode(status) == 0
