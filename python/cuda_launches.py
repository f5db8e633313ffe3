"""What the CUDA backend launches, as the emulator of tests/emulation sees it: kernels, threads, shared memory."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import pytest
import torch
from cuda_compile import CACHE, ROOT, SOURCES, demangle, describe, enumerators, split_name, template_parameters

from gpt2c import _native, ops

sys.path.insert(0, str(ROOT / "tests"))
import emulation  # noqa: E402
import remote  # noqa: E402
from emulation.cases import running  # noqa: E402

DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Launch:
    """One launch; file, kernel and arguments as in cuda_compile.Instance. shared: bytes of dynamic shared memory."""

    file: str
    kernel: str
    arguments: str
    threads: int
    shared: int


@dataclass(frozen=True)
class Call:
    """One call of an operation of csrc/kernels.h: its dtype, and all sizes and flags as text."""

    op: str
    dtype: str
    shape: str
    launches: tuple[Launch, ...]


@contextlib.contextmanager
def recorded() -> Iterator[list[Call]]:
    """Collects the calls of the emulated backend; the list is filled at the end. Servers must be started inside."""
    calls: list[Call] = []
    run = remote.Remote._run
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "launches"

        @functools.wraps(run)
        def logged(self: remote.Remote, op: str, *args: object) -> int:
            with log.open("a") as file:
                file.write(f"call {op} {_dtype(args)} {_shape(args)}\n")
            return run(self, op, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GPT2C_LAUNCHES", str(log))
            patch.setattr(remote.Remote, "_run", logged)
            yield calls
        if log.exists():
            calls += read(log.read_text(), kernels_of(emulation.build()))


def _dtype(args: tuple[object, ...]) -> str:
    def names(values: tuple[object, ...]) -> Iterator[str]:
        for value in values:
            if isinstance(value, torch.dtype):
                yield DTYPE_NAMES[value]
            elif isinstance(value, tuple):
                yield from names(value)

    return next(names(args), "-")


def _shape(args: tuple[object, ...]) -> str:
    """Sizes, strides and flags; of tensors whether they are given."""

    def words(value: object) -> Iterator[str]:
        if value is None or isinstance(value, torch.Tensor):
            yield "-" if value is None else "+"
        elif isinstance(value, (tuple, list)):
            for item in value:
                yield from words(item)
        elif isinstance(value, (bool, int)):
            yield str(int(value))

    return ",".join(word for arg in args for word in words(arg))


def read(log: str, kernels: dict[int, tuple[str, str, str]]) -> list[Call]:
    """The calls of a log; kernels: by offset in the program."""
    calls: list[Call] = []
    for line in log.splitlines():
        kind, *words = line.split()
        if kind == "call":
            calls.append(Call(*words, launches=()))
        elif calls:
            offset, threads, shared = int(words[0], 16), int(words[1]), int(words[2])
            if offset in kernels:  # else a kernel of the emulator's own tests
                last = calls.pop()
                launch = Launch(*kernels[offset], threads, shared)
                calls.append(Call(last.op, last.dtype, last.shape, (*last.launches, launch)))
    return calls


def kernels_of(program: Path) -> dict[int, tuple[str, str, str]]:
    """File, name and arguments of each kernel in the emulator's program, by offset; file and name as in Instance."""
    symbols, file, base = [], "", 0
    listing = subprocess.run(["nm", "-a", "-p", program], capture_output=True, text=True, check=True).stdout
    for line in listing.splitlines():
        address, kind, name = line.split(maxsplit=2) if len(line.split()) == 3 else ("0", "", "")
        if kind == "a":  # what follows is of this file
            file = Path(name).stem
        elif kind in ("t", "T", "W") and "cuda" in name:
            symbols.append((int(address, 16), name, file))
        elif name == "__ehdr_start":
            base = int(address, 16)
    parameters = {source.stem: template_parameters([source]) for source in SOURCES.glob("*.cu")}
    enumerations = {source.stem: enumerators([source]) for source in SOURCES.glob("*.cu")}
    headers = template_parameters(SOURCES.glob("*.cuh"))
    kernels = {}
    for (address, _, stem), name in zip(symbols, demangle([name for _, name, _ in symbols]), strict=True):
        kernel, values = split_name(name)
        found = parameters.get(stem, {}).get(kernel) or headers.get(kernel)
        if found:
            kernels[address - base] = (
                found[0],
                kernel,
                ", ".join(describe(values, found[1], enumerations.get(stem, {}))),
            )
    return kernels


# Which of the emulator's GPUs stands for an architecture: one with as much shared memory, sm_80 like sm_90.
EMULATED = {75: 75, 80: 90, 86: 86, 89: 86, 90: 90, 100: 90, 120: 86}


def gpt2_launches(arch: int) -> dict[tuple[str, str, str], tuple[int, int]]:
    """Threads of a block and dynamic shared memory of each kernel at GPT-2's widths, largest of all its launches."""
    kept = CACHE / f"launches-sm_{EMULATED[arch]}-{_digest()}.json"
    if kept.exists():
        launches = [Launch(**launch) for launch in json.loads(kept.read_text())]
    else:
        with recorded() as calls, running(f"forward,sm={EMULATED[arch]}"):
            for dtype in _native.DTYPES:
                call_every_op(dtype)
        launches = sorted({launch for call in calls for launch in call.launches}, key=astuple)
        CACHE.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps([asdict(launch) for launch in launches]))
    largest: dict[tuple[str, str, str], tuple[int, int]] = {}
    for launch in launches:
        key = (launch.file, launch.kernel, launch.arguments)
        threads, shared = largest.get(key, (0, 0))
        largest[key] = (max(threads, launch.threads), max(shared, launch.shared))
    return largest


def _digest() -> str:
    digest = hashlib.sha256()
    for folder in (SOURCES, ROOT / "tests" / "emulation", ROOT / "gpt2c" / "ops"):
        for file in sorted(folder.glob("*.*")):
            digest.update(file.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:16]


def call_every_op(dtype: torch.dtype) -> None:
    """Forward and backward of every op at GPT-2's widths, few rows, and once with rows that are not on 16 bytes; and of
    layernorm on rows that are too long for shared memory."""

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(dtype).requires_grad_()

    for C in (768, 767):
        for x, residual in ((leaf(2, C), leaf(2, C)), (leaf(2, C), None)):
            if residual is None:
                ops.layernorm(x, leaf(C), leaf(C)).sum().backward()
            else:
                sum(y.sum() for y in ops.residual_layernorm(x, residual, leaf(C), leaf(C))).backward()
        for form in ("tanh", "none"):
            ops.bias_gelu(leaf(2, C), leaf(C), approximate=form).sum().backward()
        ops.embedding(torch.tensor([[1, 2]]), leaf(4, C), leaf(2, C)).sum().backward()
        ops.cross_entropy(leaf(2, C), torch.tensor([1, 2])).backward()
        ops.grad_norm([leaf(C).detach()])
    ops.layernorm(leaf(2, 16384), leaf(16384), leaf(16384)).sum().backward()
    for D in (64, 63, 128, 127, 256):
        for Tq, dropout in ((16, 0.0), (16, 0.5), (1, 0.0)):
            q, k, v = leaf(1, 1, Tq, D), leaf(1, 1, 144, D), leaf(1, 1, 144, D)
            seed = torch.tensor([1]) if dropout else None
            ops.attention(q, k, v, causal=True, dropout_p=dropout, seed=seed).sum().backward()
    for masters, seed in ((None, None), ([torch.zeros(64)], None), (None, torch.tensor([1]))):
        if (masters and dtype == torch.float32) or (seed is not None and dtype != torch.bfloat16):
            continue
        ops.adamw_(
            [leaf(64).detach()], [leaf(64).detach()], [torch.zeros(64)], [torch.zeros(64)],
            step=1, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, masters=masters, seed=seed,
        )  # fmt: skip
