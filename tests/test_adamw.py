"""The op adamw_ and the optimizer gpt2c.AdamW over it."""

import pytest
import torch
from checks import DTYPES, EDGES, MAGNITUDES, SIZES, assert_close, check_deterministic, opcheck, randn, strided
from torch import Tensor

import gpt2c
from gpt2c import ops

op = torch.ops.gpt2c.adamw_.default
SETTINGS = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
CHUNK = 16384  # elements of one task in csrc/cpu/adamw.cpp


def state(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, scale: float = 1.0) -> list[list[Tensor]]:
    """params, grads, exp_avgs, exp_avg_sqs in the middle of a training."""
    return [
        [randn(*s, dtype=dtype) for s in shapes],
        [randn(*s, dtype=dtype, scale=scale) for s in shapes],
        [randn(*s, scale=scale) for s in shapes],
        [randn(*s, scale=scale).square() for s in shapes],
    ]


def check(lists: list[list[Tensor]], step: int = 3, grad_scale: float = 1.0, **changes: float) -> None:
    dtype = lists[0][0].dtype
    settings = {**SETTINGS, **changes}
    exact = [[t.double() for t in tensors] for tensors in lists]
    grads = [g.clone() for g in lists[1]]
    ops.adamw_(*lists, step, *settings.values(), grad_scale)
    ops.adamw_reference(*exact, step, *settings.values(), grad_scale)
    for name, got, expected in zip(("param", "grad", "exp_avg", "exp_avg_sq"), lists, exact, strict=True):
        for i, (a, b) in enumerate(zip(got, expected, strict=True)):
            assert_close("adamw", f"{name} {i}", a, b, dtype if name == "param" else a.dtype)
    for grad, before in zip(lists[1], grads, strict=True):
        assert torch.equal(grad, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES + EDGES + (CHUNK, CHUNK + 1, 0))
def test_flat_buffer(backend: str, size: int, dtype: torch.dtype) -> None:
    check(state((size,), dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_lists(backend: str, dtype: torch.dtype) -> None:
    check(state((3, 5), (), (0,), (CHUNK + 7,), (1,), (2, 3, 4), dtype=dtype))


def test_no_tensors(backend: str) -> None:
    ops.adamw_([], [], [], [], 1, *SETTINGS.values())


@pytest.mark.parametrize("scale", MAGNITUDES)
def test_magnitudes(backend: str, scale: float) -> None:
    check(state((1000,), scale=scale))


@pytest.mark.parametrize("step", [1, 2, 1000])
@pytest.mark.parametrize("grad_scale", [1.0, 0.01, 0.0])
def test_step_and_scale(backend: str, step: int, grad_scale: float) -> None:
    check(state((100,)), step=step, grad_scale=grad_scale)


@pytest.mark.parametrize(
    "changes",
    [{"weight_decay": 0.0}, {"lr": 0.0}, {"eps": 1.0}, {"beta1": 0.0, "beta2": 0.0}, {"beta2": 0.999}]
    + [{"beta2": 0.9999}, {"beta1": 0.999, "beta2": 1 - 1e-8}],
)
def test_settings(backend: str, changes: dict[str, float]) -> None:
    check(state((100,)), **changes)


def test_zero_gradient_and_state(backend: str) -> None:
    lists = [[randn(9)], *([torch.zeros(9)] for _ in range(3))]
    before = lists[0][0].clone()
    ops.adamw_(*lists, 1, *SETTINGS.values())
    assert torch.allclose(lists[0][0], before * (1 - 1e-2 * 0.1), rtol=2e-7, atol=0)


def test_non_contiguous_gradient(backend: str) -> None:
    lists = state((5, 7))
    lists[1][0] = strided(lists[1][0])
    check(lists)


def test_deterministic(backend: str) -> None:
    lists = state((3, 5), (CHUNK * 3 + 7,), (100,))

    def run() -> list[Tensor]:
        copies = [[t.clone() for t in tensors] for tensors in lists]
        ops.adamw_(*copies, 3, *SETTINGS.values(), 0.5)
        return [t for tensors in copies for t in tensors]

    check_deterministic(run)


def test_opcheck(backend: str) -> None:
    opcheck(op, *state((3, 5), (4,)), 2, *SETTINGS.values(), 0.5)


def test_change_is_seen_by_autograd(backend: str) -> None:
    lists = state((4,))
    x = randn(4).requires_grad_()
    y = (x * lists[0][0]).sum()
    ops.adamw_(*lists, 1, *SETTINGS.values())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"grads": []}, ValueError, r"have \(1, 0, 1, 1\) tensors, expected the same number"),
        ({"grads": [torch.ones(3)]}, ValueError, r"grads\[0\] has shape \(3,\), expected \(4,\)"),
        ({"exp_avgs": [torch.ones(4).bfloat16()]}, TypeError, r"exp_avgs\[0\] has dtype torch.bfloat16, expected"),
        ({"grads": [torch.ones(4).bfloat16()]}, TypeError, r"grads\[0\] has dtype torch.bfloat16"),
        ({"params": [torch.ones(8)[::2]]}, ValueError, r"params\[0\] has strides \(2,\), expected a contiguous tensor"),
        ({"step": 0}, ValueError, "step is 0, expected 1 or more"),
        ({"beta1": 1.0}, ValueError, r"betas are \(1.0, 0.95\), expected both in \[0, 1\)"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    names = ("params", "grads", "exp_avgs", "exp_avg_sqs")
    given = {**{n: [torch.ones(4)] for n in names}, "step": 1, **SETTINGS, **change}
    with pytest.raises(error, match="adamw: .*" + message):
        ops.adamw_(**given)


def train(optimizer: torch.optim.Optimizer, params: list[Tensor], steps: int, start: int = 0) -> None:
    for i in range(start, start + steps):
        generator = torch.Generator().manual_seed(i)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def test_optimizer_is_torchs(backend: str) -> None:
    ours, theirs = ([torch.linspace(-1, 1, 300).view(3, 100), torch.ones(7)] for _ in range(2))
    groups = [
        [{"params": [p[0]], "weight_decay": 0.1}, {"params": [p[1]], "weight_decay": 0.0, "lr": 1e-2}]
        for p in (ours, theirs)
    ]
    train(gpt2c.AdamW(groups[0]), ours, 20)
    train(torch.optim.AdamW(groups[1]), theirs, 20)
    for a, b in zip(ours, theirs, strict=True):
        # 20 steps of 1e-3 or 1e-2, each right to a few roundings.
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)


def test_optimizer_resumes(backend: str) -> None:
    whole, halves = torch.ones(50), torch.ones(50)
    train(gpt2c.AdamW([whole]), [whole], 10)
    first = gpt2c.AdamW([halves])
    train(first, [halves], 5)
    second = gpt2c.AdamW([halves])
    second.load_state_dict(first.state_dict())
    train(second, [halves], 5, start=5)
    assert torch.equal(whole, halves)


def test_optimizer_keeps_fp32_state_of_bf16(backend: str) -> None:
    p = torch.ones(50, dtype=torch.bfloat16)
    optimizer = gpt2c.AdamW([p])
    p.grad = randn(50, dtype=torch.bfloat16)
    optimizer.step()
    loaded = gpt2c.AdamW([p])
    loaded.load_state_dict(optimizer.state_dict())
    for name in ("exp_avg", "exp_avg_sq"):
        assert loaded.state[p][name].dtype == torch.float32
        assert torch.equal(loaded.state[p][name], optimizer.state[p][name])


def test_optimizer_skips_what_has_no_gradient() -> None:
    a, b = torch.ones(3), torch.ones(3)
    optimizer = gpt2c.AdamW([a, b])
    a.grad = torch.ones(3)
    optimizer.step()
    assert not torch.equal(a, torch.ones(3)) and torch.equal(b, torch.ones(3))


def test_optimizer_closure_and_grad_scale() -> None:
    a, b = (torch.ones(3, requires_grad=True) for _ in range(2))

    def closure() -> Tensor:
        a.grad = None
        loss = (a * a).sum()
        loss.backward()
        return loss

    assert gpt2c.AdamW([a]).step(closure, grad_scale=0.5).item() == 3.0
    b.grad = torch.ones(3)
    gpt2c.AdamW([b]).step()
    assert torch.equal(a, b)


def test_a_refused_step_changes_nothing() -> None:
    a, b = torch.ones(3), torch.ones(8)[::2]
    optimizer = gpt2c.AdamW([a, b])
    for p in (a, b):
        p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"params\[1\] has strides \(2,\)"):
        optimizer.step()
    assert torch.equal(a, torch.ones(3)) and optimizer.state[a]["step"] == 0


def test_group_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="AdamW: lr is -1, expected 0 or more"):
        gpt2c.AdamW([{"params": [torch.ones(1)], "lr": -1}])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "AdamW: lr is -1.0, expected 0 or more"),
        ({"eps": float("nan")}, "AdamW: eps is nan"),
        ({"weight_decay": -0.1}, "AdamW: weight_decay is -0.1"),
        ({"betas": (0.9, 1.0)}, r"AdamW: betas are \(0.9, 1.0\), expected both in \[0, 1\)"),
    ],
)
def test_optimizer_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gpt2c.AdamW([torch.ones(1)], **settings)
