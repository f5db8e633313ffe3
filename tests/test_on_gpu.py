"""The `cuda` backend's way to a GPU and back, taken here with the CPU in place of the GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import remote
import torch
from checks import check_op, randn, strided
from on_gpu import GUARD, OnGpu, gpu_problem

from gpt2c import _native, ops
from gpt2c.ops.attention import attention_reference
from gpt2c.ops.embedding import embedding_reference


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The CPU's kernels behind copies of all memory; the names of those called."""
    names: list[str] = []
    cpu_call = _native.call

    def call(kernel: str, *args: object) -> int | None:
        names.append(kernel)
        return cpu_call(kernel, *args)

    OnGpu("cpu", call).patch(monkeypatch)
    return names


def patched_with(monkeypatch: pytest.MonkeyPatch, kernel) -> None:
    OnGpu("cpu", lambda name, *args: kernel(*args)).patch(monkeypatch)


def test_attention_of_any_strides(calls: list[str]) -> None:
    q, k, v = (strided(randn(2, 3, T, 8)) for T in (5, 9, 9))
    check_op("attention", ops.attention, attention_reference, {"q": q, "k": k, "v": v})
    assert calls == ["attention_forward", "attention_backward"]


def test_a_seed_inside_the_shape_travels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    q, seed = randn(1, 1, 4, 8), torch.tensor([7])
    seen = []
    patched_with(monkeypatch, lambda shape, *rest: seen.append(shape[8]))
    ops.attention(q, q, q, dropout_p=0.5, seed=seed)
    assert seen[0].item() == 7 and seen[0].data_ptr() != seed.data_ptr()


def test_embedding_and_its_range_check(calls: list[str]) -> None:
    idx = torch.tensor([[0, 2, 1], [2, 2, 0]])
    check_op("embedding", ops.embedding, embedding_reference, {"idx": idx, "wte": randn(3, 5), "wpe": randn(4, 5)})
    assert calls == ["embedding_forward", "embedding_backward"]
    with pytest.raises(IndexError, match=r"idx\[1, 0\] is 3, expected ids in \[0, 3\)"):
        ops.embedding(torch.tensor([[0], [3]]), randn(3, 5), randn(4, 5))


def test_lists_of_tensors_are_changed_in_place_and_sizes_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {name: [randn(3, 2), randn(4)] for name in ("params", "grads", "m", "v")}
    before = [p.clone() for p in given["params"]]

    def add_one(dtype, params, grads, m, v, sizes, count, seed) -> None:
        seen.extend((sizes, seed))
        for param in params:
            param += 1

    patched_with(monkeypatch, add_one)
    sizes, seed, seen = torch.tensor([6, 4]), torch.tensor([7]), []
    _native.call("adamw", torch.float32, *given.values(), sizes, 2, seed)
    assert seen[0] is sizes and seen[1].data_ptr() != seed.data_ptr()
    assert all(torch.equal(p, b + 1) for p, b in zip(given["params"], before, strict=True))


def test_tensors_that_share_memory_share_it_there(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.arange(8.0)
    patched_with(monkeypatch, lambda a, b: b.mul_(a.storage_offset() - b.storage_offset()))
    _native.call("any", x[6:], x[2:4])
    assert x.tolist() == [0, 1, 8, 12, 4, 5, 6, 7]


@pytest.mark.parametrize(("index", "place"), [(-1, "before"), (8, "behind")])
def test_a_write_beside_a_tensor_is_found(monkeypatch: pytest.MonkeyPatch, index: int, place: str) -> None:
    def overrun(x: torch.Tensor) -> None:
        x.as_strided((), (), GUARD // 4 + index).fill_(1.0)

    patched_with(monkeypatch, overrun)
    with pytest.raises(AssertionError, match=f"any: wrote {place} "):
        _native.call("any", torch.zeros(8))


def test_an_output_that_no_kernel_writes_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    patched_with(monkeypatch, lambda *args: None)
    assert ops.gelu(torch.ones(5)).isnan().all()


@pytest.mark.skipif(not gpu_problem(), reason="this machine has a GPU")
def test_the_gpu_alone_needs_one() -> None:
    pytest_here = Path(sys.executable).with_name("pytest")
    command = [pytest_here, "--backends", "gpu", "tests/test_gelu.py"]
    done = subprocess.run(command, cwd=remote.ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (4, f"ERROR: --backends gpu: no GPU to run on: {gpu_problem()}\n\n")
