"""What torch's FlopCounterMode counts for the ops: what it counts for the same model in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from twin import Twin

import gpt2c
from gpt2c import ops

B, T, C, LAYERS, V = 2, 8, 32, 3, 50
ATTENTION = 4 * B * T * T * C * LAYERS  # of one forward; on the CPU torch counts none for its own


def counted(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture
def model() -> gpt2c.GPT2:
    return gpt2c.GPT2(gpt2c.GPT2Config(vocab_size=V, n_positions=16, n_embd=C, n_layer=LAYERS, n_head=2))


def test_a_model(model: gpt2c.GPT2) -> None:
    idx = torch.randint(0, V, (B, T))
    products = 24 * B * T * C * C * LAYERS + 2 * B * T * C * V
    with torch.no_grad():
        assert counted(lambda: model(idx)) == products + ATTENTION
    assert counted(lambda: model(idx, idx)[1].backward()) == 3 * products + 3.5 * ATTENTION
    model.recompute = True
    again = 16 * B * T * C * C * LAYERS + ATTENTION
    assert counted(lambda: model(idx, idx)[1].backward()) == 3 * products + 3.5 * ATTENTION + again


def test_the_twin_has_as_many_but_for_attention(model: gpt2c.GPT2) -> None:
    idx = torch.randint(0, V, (B, T))
    twin = Twin.of(model)
    assert counted(lambda: twin(idx, idx)[1].backward()) in (
        counted(lambda: model(idx, idx)[1].backward()) - 3.5 * ATTENTION,
        counted(lambda: model(idx, idx)[1].backward()),  # by a torch that counts its own on the CPU
    )


def test_single_ops() -> None:
    q, k = torch.randn(2, 3, 5, 4, requires_grad=True), torch.randn(2, 3, 7, 4)
    assert counted(lambda: ops.attention(q, k, k)) == 4 * 2 * 3 * 5 * 7 * 4
    assert counted(lambda: ops.attention(q, k, k).sum().backward()) == 14 * 2 * 3 * 5 * 7 * 4
    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5)
    assert counted(lambda: ops.matmul(a, b).sum().backward()) == 2 * 2 * 3 * 4 * 5
    x, w = torch.randn(6, 8, requires_grad=True), torch.randn(9, 8)
    assert counted(lambda: ops.linear_cross_entropy(x, w, torch.arange(6))) == 2 * 2 * 6 * 8 * 9
