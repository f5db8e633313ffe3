"""Mixed precision: fp32 weights and gradients around 16-bit arithmetic; what is chosen where, and what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import tiny
import torch

from gpt2c import _native, precision
from gpt2c.config import GPT2Config
from gpt2c.errors import UserError
from gpt2c.model import GPT2
from gpt2c.precision import find_device, find_precision
from gpt2c.train import train

CPU = torch.device("cpu")
SIZES = GPT2Config(vocab_size=300, n_positions=64, n_embd=64, n_layer=2, n_head=2)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def gradients(model: GPT2, dtype: torch.dtype | None) -> tuple[float, dict[str, torch.Tensor]]:
    idx = torch.arange(2 * 65).view(2, 65) % 300
    model.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = model(idx[:, :-1], idx[:, 1:])[1]
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("recompute", [False, True])
def test_bf16_autocast_is_near_fp32_and_its_gradients_are_fp32(recompute: bool) -> None:
    model = GPT2(SIZES)
    model.recompute = recompute
    loss, exact = gradients(model, None)
    near, rounded = gradients(model, torch.bfloat16)
    assert near == pytest.approx(loss, rel=1e-3) and near != loss
    for name, gradient in rounded.items():
        assert gradient.dtype == torch.float32 and model.get_parameter(name).dtype == torch.float32
        error = float((gradient - exact[name]).norm() / exact[name].norm())
        assert error < 0.03, f"{name}: relative error {error}"  # bf16 has 8 bits: 0.4 % a rounding, a few in a row


def test_under_autocast_activations_are_bf16_and_the_loss_is_fp32() -> None:
    model = GPT2(SIZES).eval()
    idx = torch.arange(16).view(1, 16)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert model.hidden(idx).dtype == torch.bfloat16
        assert model(idx)[0].dtype == torch.bfloat16
        assert model(idx, idx)[1].dtype == torch.float32


def test_a_run_in_bf16_learns_what_one_in_fp32_does(tmp_path: Path) -> None:
    losses = []
    for name in ("fp32", "bf16"):
        (tmp_path / name).mkdir()
        config = tiny.config(tmp_path / name, precision=name, steps=60, batch_size=8, lr=1e-2, eval_every=60)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            losses.append(tiny.metrics(train(config).run.folder)[-1]["val_loss"])
    assert losses[0] < 4.0 and losses[1] == pytest.approx(losses[0], rel=0.02) and losses[0] != losses[1]


def test_a_cpu_is_kept_in_fp32() -> None:
    assert find_precision("auto", CPU) == "fp32" and find_precision("fp32", CPU) == "fp32"
    with pytest.raises(UserError, match="--precision is fp16, which is for GPUs"):
        find_precision("fp16", CPU)


@pytest.mark.parametrize("has_bf16", [False, True])
def test_bf16_on_a_cpu_without_it_is_said_to_gain_no_time(monkeypatch: pytest.MonkeyPatch, has_bf16: bool) -> None:
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: has_bf16)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert find_precision("bf16", CPU) == "bf16"
    assert bool(told) is not has_bf16


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((12, 0), "bf16")])
def test_a_gpu_gets_bf16_where_it_has_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert find_precision("auto", torch.device("cuda", 0)) == expected
    assert find_precision("fp32", torch.device("cuda", 0)) == "fp32"


def test_a_gpu_is_taken_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == find_device("cpu") == CPU
    with pytest.raises(UserError, match="--device is cuda, but there is none to use"):
        find_device("cuda")
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(_native, "CUDA", object())
    assert find_device("auto", 1) == torch.device("cuda", 1) == taken[0] and find_device("cpu") == CPU
    with pytest.raises(UserError, match="process 2 of this machine finds 2 GPUs"):
        find_device("cuda", 2)
