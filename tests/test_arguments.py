"""What every op makes of arguments that are not what its signature says: a tensor, a bool or a string for a number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import gpt2c
from gpt2c import _native, ops

IDX = torch.tensor([[1, 1, 0]])


def _block(**changes: object) -> object:
    C = 4
    wide = {"qkv_weight": (C, 3 * C), "qkv_bias": (3 * C,), "o_weight": (C, C), "fc_weight": (C, 4 * C)}
    wide |= {"fc_bias": (4 * C,), "proj_weight": (4 * C, C)}
    weights = ops.BlockWeights(*(torch.ones(wide.get(name, (C,))) for name in ops.BlockWeights._fields))
    return ops.block(**{"x": torch.ones(1, 3, C), "h": None, "weights": weights, "n_head": 2, **changes})


def _adamw(**changes: object) -> None:
    numbers = {"step": 1, "lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0}
    ops.adamw_(*[[torch.ones(3)] for _ in range(4)], **{**numbers, **changes})


def _attention(**changes: object) -> Tensor:
    return ops.attention(*[torch.ones(1, 2, 3, 4)] * 3, **changes)


def _embedding(**changes: object) -> Tensor:
    return ops.embedding(IDX, torch.ones(3, 4), torch.ones(9, 4), **changes)


def _tied_embedding(**changes: object) -> Tensor:
    return ops.tied_embedding(IDX, torch.ones(3, 4), torch.ones(9, 4), **changes)[0]


def _layernorm(**changes: object) -> Tensor:
    return ops.layernorm(torch.ones(2, 4), torch.ones(4), torch.ones(4), **changes)


def _residual_layernorm(**changes: object) -> Tensor:
    return ops.residual_layernorm(torch.ones(2, 4), torch.ones(2, 4), torch.ones(4), torch.ones(4), **changes)[1]


def _cross_entropy(**changes: object) -> Tensor:
    return ops.cross_entropy(torch.ones(3, 4), IDX[0], **changes)


def _linear_cross_entropy(**changes: object) -> Tensor:
    return ops.linear_cross_entropy(torch.ones(3, 4), torch.ones(3, 4), IDX[0], **changes)


INTEGERS = [
    (_embedding, "start"), (_embedding, "vocab_size"), (_tied_embedding, "start"), (_tied_embedding, "vocab_size"),
    (_cross_entropy, "ignore_index"), (_linear_cross_entropy, "ignore_index"), (_linear_cross_entropy, "vocab_size"),
    (_block, "n_head"), (_adamw, "step"),
]  # fmt: skip
NUMBERS = [
    (_attention, "scale"), (_attention, "dropout_p"), (_layernorm, "eps"), (_residual_layernorm, "eps"),
    (_block, "eps"), (_block, "dropout_p"),
    *((_adamw, name) for name in ("lr", "beta1", "beta2", "eps", "weight_decay")),
]  # fmt: skip
FLAGS = [(_attention, "causal"), (_block, "recompute")]


@pytest.mark.parametrize("gradient", (False, True))
@pytest.mark.parametrize(("call", "name"), INTEGERS)
def test_integers(call: Callable, name: str, gradient: bool) -> None:
    with torch.set_grad_enabled(gradient):
        for value in (torch.tensor(1), True, 1.0, "1", [1], np.float32(1)):
            with pytest.raises(TypeError, match=rf"{name} is of type \w+, expected an integer"):
                call(**{name: value})
        call(**{name: np.int64(2)})
        with pytest.raises(ValueError, match=rf"{name} is {2**63}, expected an integer of 64 bits"):
            call(**{name: 2**63})


@pytest.mark.parametrize(("call", "name"), NUMBERS)
def test_numbers(call: Callable, name: str) -> None:
    for value in (torch.tensor(0.5), torch.tensor(0.5, requires_grad=True), True, "1", 1j, [0.5]):
        with pytest.raises(TypeError, match=rf"{name} is of type \w+, expected a number"):
            call(**{name: value})
    call(**{name: np.float32(0.0)})
    call(**{name: 0})


@pytest.mark.parametrize(("call", "name"), FLAGS)
def test_flags(call: Callable, name: str) -> None:
    for value in (torch.tensor(True), 1, 1.0, "yes", None):
        with pytest.raises(TypeError, match=rf"{name} is of type \w+, expected True or False"):
            call(**{name: value})


def test_numbers_of_other_types_mean_the_same() -> None:
    x, w = torch.randn(2, 4), torch.randn(4)
    assert torch.equal(ops.layernorm(x, w, w, np.float64(1)), ops.layernorm(x, w, w, 1.0))
    assert torch.equal(_embedding(start=np.int32(2)), _embedding(start=2))
    # The dispatcher itself takes a tensor for its value.
    by_torch = torch.ops.gpt2c.layernorm_forward(x, None, w, w, torch.tensor(1.0))[1]
    assert torch.equal(by_torch, ops.layernorm(x, w, w, 1.0))


def test_tensors() -> None:
    for value in (None, [1.0], 1.0, np.ones(3, dtype=np.float32)):
        with pytest.raises(TypeError, match=r"gelu: x is of type \w+, expected a tensor"):
            ops.gelu(value)
    with pytest.raises(TypeError, match="grad_norm: grads is of type Tensor, expected a list of tensors"):
        ops.grad_norm(torch.ones(3))
    with pytest.raises(TypeError, match=r"grad_norm: grads\[1\] is of type NoneType, expected a tensor"):
        ops.grad_norm([torch.ones(3), None])
    with pytest.raises(TypeError, match="gelu: approximate is of type int, expected a string"):
        ops.gelu(torch.ones(3), 1)


def gelu_arguments() -> dict[str, object]:
    names = ("dtype", "x", "bias", "y", "N", "C", "exact")
    return dict(zip(names, (torch.float32, torch.ones(2, 4), None, torch.empty(2, 4), 2, 4, False), strict=True))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("N", torch.tensor(2)), ("N", True), ("N", 2.0), ("N", None), ("N", np.int64(2)), ("N", 2**63),
        ("y", 12345), ("y", True), ("y", [12345]), ("x", 1.5), ("exact", 1), ("exact", None), ("exact", torch.ones(1)),
    ],
)  # fmt: skip
def test_the_extension_takes_nothing_for_something_else(name: str, value: object) -> None:
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _native.call("gelu_forward", *{**gelu_arguments(), name: value}.values())


SETTINGS = {"lr": 1e-2, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}
TENSORS = {name: torch.tensor(value, dtype=torch.float64) for name, value in SETTINGS.items() if name != "betas"}
TENSORS["betas"] = tuple(torch.tensor(beta, dtype=torch.float64) for beta in SETTINGS["betas"])


def trained(settings: dict, schedule: bool = False) -> Tensor:
    torch.manual_seed(0)
    p = torch.randn(5, requires_grad=True)
    optimizer = gpt2c.AdamW([p], **settings)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) if schedule else None
    for _ in range(3):
        p.grad = torch.randn(5)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return p.detach()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("schedule", (False, True))
def test_the_optimizer_takes_tensors_of_one_element(name: str, schedule: bool) -> None:
    given = {**SETTINGS, name: _copy(TENSORS[name])}
    assert torch.equal(trained(given, schedule), trained(SETTINGS, schedule))


def _copy(value: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """A scheduler changes a tensor in place."""
    return value.clone() if isinstance(value, Tensor) else tuple(beta.clone() for beta in value)


def test_the_optimizer_takes_over_a_tensor_lr_from_torchs() -> None:
    p = torch.ones(3, requires_grad=True)
    theirs = torch.optim.AdamW([p], lr=torch.tensor(0.5))
    p.grad = torch.ones(3)
    theirs.step()
    saved, begun = theirs.state_dict(), p.detach().clone()
    theirs.step()
    want = p.detach().clone()
    ours = gpt2c.AdamW([p])
    ours.load_state_dict(saved)
    p.data.copy_(begun)
    ours.step()
    torch.testing.assert_close(p.detach(), want)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": torch.ones(2)}, "lr is of type Tensor, expected a number"),
        ({"lr": True}, "lr is of type bool, expected a number"),
        ({"lr": None}, "lr is of type NoneType, expected a number"),
        ({"betas": ("0.9", 0.9)}, "beta1 is of type str, expected a number"),
        ({"seed": torch.tensor(1)}, "seed is of type Tensor, expected an integer"),
        ({"master_weights": 1}, "master_weights is of type int, expected True or False"),
    ],
)
def test_the_optimizers_other_types(settings: dict, message: str) -> None:
    with pytest.raises(TypeError, match=f"AdamW: {message}"):
        gpt2c.AdamW([torch.ones(1)], **settings)


def test_a_setting_is_looked_at_in_each_step() -> None:
    p = torch.ones(3, requires_grad=True)
    optimizer = gpt2c.AdamW([p])
    optimizer.param_groups[0]["lr"] = torch.ones(2)
    p.grad = torch.ones(3)
    with pytest.raises(TypeError, match="AdamW: lr is of type Tensor, expected a number"):
        optimizer.step()
    assert torch.equal(p.detach(), torch.ones(3))
