"""Which backend is taken, and what it says when it cannot be."""

import os
import subprocess
import sys

import pytest
import torch

from gpt2c import _native


def forced(isa: str, *args: str) -> subprocess.CompletedProcess:
    program = "import torch, gpt2c; gpt2c.ops.gelu(torch.ones(1)); print(gpt2c._native.active_isa())"
    environment = {**os.environ, "GPT2C_FORCE_ISA": isa}
    command = [sys.executable, *(args or ("-c", program))]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


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
