"""The op adamw_ and the optimizer gpt2c.AdamW over it."""

import copy
from collections.abc import Callable

import pytest
import torch
from checks import DTYPES, EDGES, MAGNITUDES, SIZES, assert_close, check_deterministic, opcheck, randn, shifted, strided
from torch import Tensor

import gpt2c
from gpt2c import ops

op = torch.ops.gpt2c.adamw_.default
SETTINGS = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
CHUNK = 16384  # elements of one task in csrc/cpu/adamw.cpp, and four chunks of csrc/cuda/adamw.cu
NARROW = [dtype for dtype in DTYPES if dtype.itemsize == 2]


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


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.999), (0.999, 0.99), (0.99, 1 - 1e-5)])
def test_first_step(backend: str, beta1: float, beta2: float) -> None:
    # The moments are (1 - beta) g and (1 - beta) g^2: of beta2 in fp32 the latter would be wrong by 1e-5 or more.
    params, grads, *_ = state((100,))
    check([params, grads, [torch.zeros(100)], [torch.zeros(100)]], step=1, beta1=beta1, beta2=beta2)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_small_gradient_after_a_large_one(backend: str, beta: float) -> None:
    params, grads, exp_avgs, exp_avg_sqs = state((100,))
    grads = [1e-6 * grads[0]]
    check([params, grads, exp_avgs, exp_avg_sqs], beta1=beta, beta2=beta)


def test_zero_gradient_and_state(backend: str) -> None:
    lists = [[randn(9)], *([torch.zeros(9)] for _ in range(3))]
    before = lists[0][0].clone()
    ops.adamw_(*lists, 1, *SETTINGS.values())
    assert torch.allclose(lists[0][0], before * (1 - 1e-2 * 0.1), rtol=2e-7, atol=0)


def test_non_contiguous_gradient(backend: str) -> None:
    lists = state((5, 7))
    lists[1][0] = strided(lists[1][0])
    check(lists)


@pytest.mark.parametrize("dtype", DTYPES)
def test_misaligned(backend: str, dtype: torch.dtype) -> None:
    check([[shifted(t) for t in tensors] for tensors in state((3, 5), (1000,), dtype=dtype)])


def test_more_tensors_than_a_launch_takes(backend: str) -> None:
    check(state(*[(n % 7,) for n in range(130)]))


@pytest.mark.parametrize(
    ("dtype", "options"),
    [(torch.float32, "plain"), (torch.bfloat16, "plain"), (torch.bfloat16, "masters"), (torch.bfloat16, "seed")],
)
def test_deterministic(backend: str, dtype: torch.dtype, options: str) -> None:
    lists = state((3, 5), (CHUNK * 3 + 7,), (100,), dtype=dtype)

    def run() -> list[Tensor]:
        copies = [[t.clone() for t in tensors] for tensors in lists]
        masters = [p.float() for p in lists[0]] if options == "masters" else None
        seed = torch.tensor([5]) if options == "seed" else None
        ops.adamw_(*copies, 3, *SETTINGS.values(), 0.5, masters, seed)
        return [t for tensors in [*copies, masters or []] for t in tensors]

    check_deterministic(run)


def test_opcheck(backend: str) -> None:
    lists = state((3, 5), (4,), dtype=torch.bfloat16)
    settings = 2, *SETTINGS.values(), torch.tensor(0.5)
    opcheck(op, *lists, *settings, [p.float() for p in lists[0]], None)
    opcheck(op, *lists, *settings, [], torch.tensor(7))


@pytest.mark.parametrize("grad_scale", [0.3, 1.0, 0.0])
def test_grad_scale_on_the_device(backend: str, grad_scale: float) -> None:
    lists = state((100,), (3,))
    same = [[t.clone() for t in tensors] for tensors in lists]
    ops.adamw_(*lists, 3, *SETTINGS.values(), grad_scale)
    ops.adamw_(*same, 3, *SETTINGS.values(), torch.tensor([grad_scale]))
    for tensors, others in zip(lists, same, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


@pytest.mark.parametrize("grad_scale", [torch.nan, torch.inf, -torch.inf])
def test_a_grad_scale_that_is_not_finite_changes_nothing(backend: str, grad_scale: float) -> None:
    lists = state((100,), (3,), dtype=torch.bfloat16)
    lists.append([p.float() for p in lists[0]])
    before = [[t.clone() for t in tensors] for tensors in lists]
    ops.adamw_(*lists[:4], 3, *SETTINGS.values(), torch.tensor(grad_scale), lists[4])
    for tensors, others in zip(lists, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("misaligned", [False, True])
def test_masters(backend: str, dtype: torch.dtype, misaligned: bool) -> None:
    lists = state((3, 5), (), (0,), (CHUNK + 7,), (1,), (65,), dtype=dtype)
    # Between two 16-bit numbers: an update of the parameter instead would be seen.
    masters = [p.float() * (1 + 2.0**-10) for p in lists[0]]
    if misaligned:
        *lists, masters = [[shifted(t) for t in tensors] for tensors in [*lists, masters]]
    exact = [[t.double() for t in tensors] for tensors in [*lists, masters]]
    ops.adamw_(*lists, 3, *SETTINGS.values(), 0.5, masters)
    ops.adamw_reference(*exact[:4], 3, *SETTINGS.values(), 0.5, exact[4])
    for i, (param, master) in enumerate(zip(lists[0], masters, strict=True)):
        assert_close("adamw", f"master {i}", master, exact[4][i], torch.float32)
        assert torch.equal(param, master.to(dtype))
        for k, name in ((2, "exp_avg"), (3, "exp_avg_sq")):
            assert_close("adamw", f"{name} {i}", lists[k][i], exact[k][i], torch.float32)


def test_masters_of_nan_give_nan(backend: str) -> None:
    # Of which rounding must not make a number by carrying the last bits on.
    lists = state((9,), dtype=torch.bfloat16)
    masters = [lists[0][0].float()]
    masters[0].view(torch.int32)[5] = 0x7FFFFFFF
    ops.adamw_(*lists, 3, *SETTINGS.values(), 0.5, masters)
    assert lists[0][0].isnan().nonzero().flatten().tolist() == [5]


def exactly_representable_update(*shapes: tuple[int, ...]) -> tuple[list[list[Tensor]], tuple]:
    """Lists and settings for which every machine computes the same fp32 numbers, whether a * b + c is rounded once or
    twice: moments that are the gradient and its square, no decay, and an update that is lr or -lr."""
    grads = [torch.randint(1, 256, s).bfloat16() * torch.randn(s).sign().bfloat16() for s in shapes]
    moments = [[torch.zeros(s) for s in shapes] for _ in range(2)]
    return [[randn(*s, dtype=torch.bfloat16) for s in shapes], grads, *moments], (1, 1e-3, 0.0, 0.0, 1e-8, 0.0)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**40 + 3])
@pytest.mark.parametrize("misaligned", [False, True])
def test_stochastic_rounding_is_the_references(backend: str, seed: int, misaligned: bool) -> None:
    lists, settings = exactly_representable_update((3, 5), (), (CHUNK + 77,), (8,), *[(n,) for n in range(65)])
    if misaligned:
        lists = [[shifted(t) for t in tensors] for tensors in lists]
    copies = [[t.clone() for t in tensors] for tensors in lists]
    nearest = [[t.clone() for t in tensors] for tensors in lists]
    ops.adamw_(*lists, *settings, seed=torch.tensor(seed))
    ops.adamw_reference(*copies, *settings, seed=torch.tensor(seed))
    ops.adamw_(*nearest, *settings)
    for i, (got, expected) in enumerate(zip(lists[0], copies[0], strict=True)):
        assert torch.equal(got, expected), f"tensor {i}"
    assert not torch.equal(lists[0][2], nearest[0][2])


def test_stochastic_rounding_is_unbiased(backend: str) -> None:
    lists, settings = exactly_representable_update((4 * CHUNK,))
    exact = [[t.float() for t in tensors] for tensors in lists]
    ops.adamw_(*lists, *settings, seed=torch.tensor(11))
    ops.adamw_reference(*exact, *settings)
    got, x = lists[0][0].double(), exact[0][0].double()
    # The two neighbours of x, whose distance is 2^-7 of the power of two below; f is the chance of the outer one.
    gap = 2.0 ** (x.abs().log2().floor() - 7)
    f = (x.abs() / gap).frac()
    assert ((got - x).abs() < gap).all()
    deviation = float(((got - x) * x.sign()).div(gap).sum() / (f * (1 - f)).sum().sqrt())
    assert abs(deviation) < 5, f"{deviation} standard deviations"


def test_stochastic_rounding_keeps_inf_and_nan(backend: str) -> None:
    lists, settings = exactly_representable_update((40,))
    bad = torch.tensor([torch.inf, -torch.inf, torch.nan]).bfloat16()
    lists[0][0][5:8] = bad
    lists[2][0].view(torch.int32)[9] = 0x7FFFFFFF  # a nan whose last bits are set, as GPUs make them
    ops.adamw_(*lists, *settings, seed=torch.tensor(1))
    assert torch.equal(lists[0][0][5:7], bad[:2]) and lists[0][0].isnan().nonzero().flatten().tolist() == [7, 9]


def test_change_is_seen_by_autograd(backend: str) -> None:
    lists = state((4,))
    x = randn(4).requires_grad_()
    y = (x * lists[0][0]).sum()
    ops.adamw_(*lists, 1, *SETTINGS.values())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


BF16 = {"params": [torch.ones(4).bfloat16()], "grads": [torch.ones(4).bfloat16()]}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"params": torch.ones(4)}, TypeError, "params is of type Tensor, expected a list of tensors"),
        ({"grads": []}, ValueError, r"have \(1, 0, 1, 1\) tensors, expected the same number"),
        ({"grads": [torch.ones(3)]}, ValueError, r"grads\[0\] has shape \(3,\), expected \(4,\)"),
        ({"exp_avgs": [torch.ones(4).bfloat16()]}, TypeError, r"exp_avgs\[0\] has dtype torch.bfloat16, expected"),
        ({"grads": [torch.ones(4).bfloat16()]}, TypeError, r"grads\[0\] has dtype torch.bfloat16"),
        ({"params": [torch.ones(8)[::2]]}, ValueError, r"params\[0\] has strides \(2,\), expected a contiguous tensor"),
        ({"step": 0}, ValueError, "step is 0, expected 1 or more"),
        ({"masters": [torch.ones(4)]}, TypeError, "params have dtype torch.float32 and masters were given"),
        ({**BF16, "masters": [torch.ones(4)] * 2}, ValueError, "masters has 2 tensors, expected 1 like params"),
        ({**BF16, "masters": [torch.ones(5)]}, ValueError, r"masters\[0\] has shape \(5,\), expected \(4,\)"),
        ({**BF16, "masters": [torch.ones(4).bfloat16()]}, TypeError, r"masters\[0\] has dtype torch.bfloat16"),
        ({**BF16, "masters": [torch.ones(4)], "seed": torch.tensor(1)}, ValueError, "masters and seed were both given"),
        ({"seed": torch.tensor(1)}, TypeError, "params have dtype torch.float32, expected torch.bfloat16 to round"),
        ({**BF16, "seed": torch.ones(1)}, TypeError, "seed has dtype torch.float32"),
        ({**BF16, "seed": torch.tensor([1, 2])}, ValueError, r"seed has shape \(2,\), expected one element"),
        ({"grad_scale": torch.ones(2)}, ValueError, r"grad_scale has shape \(2,\) on cpu, expected one element on cpu"),
        ({"grad_scale": torch.ones(1).double()}, TypeError, "grad_scale has dtype torch.float64"),
        ({"eps": -1e-8}, ValueError, "eps is -1e-08, expected 0 or more"),
        ({"eps": float("nan")}, ValueError, "eps is nan, expected 0 or more"),
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
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
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


def run_both(first_steps: int, dtype: torch.dtype, **options: object) -> tuple[list[Tensor], list[Tensor]]:
    """Two groups trained for 10 steps, and the same with a new optimizer loaded after first_steps; their parameters."""
    whole, halves = ([torch.linspace(-1, 1, 50).to(dtype), torch.ones(9, dtype=dtype)] for _ in range(2))

    def new(params: list[Tensor]) -> gpt2c.AdamW:
        return gpt2c.AdamW([{"params": [p]} for p in params], lr=1e-4, **options)

    train(new(whole), whole, 10)
    first = new(halves)
    train(first, halves, first_steps)
    second = new(halves)
    second.load_state_dict(first.state_dict())
    train(second, halves, 10 - first_steps, start=first_steps)
    return whole, halves


@pytest.mark.parametrize("options", [{"master_weights": True}, {"stochastic_rounding": True, "seed": 4}])
def test_optimizer_resumes_bf16(options: dict) -> None:
    for first_steps in (0, 1, 5):
        for a, b in zip(*run_both(first_steps, torch.bfloat16, **options), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("options", [{"master_weights": True}, {"stochastic_rounding": True}])
def test_optimizer_options_mean_nothing_to_fp32(options: dict) -> None:
    plain, others = run_both(5, torch.float32), run_both(5, torch.float32, **options)
    assert all(torch.equal(a, b) for a, b in zip(plain[0] + plain[1], others[0] + others[1], strict=True))


def constant_descent(steps: int, **options: object) -> Tensor:
    """4096 bf16 ones after `steps` updates of -1e-4, a 39th of the distance to the next number."""
    p = torch.ones(4096, dtype=torch.bfloat16)
    optimizer = gpt2c.AdamW([p], lr=1e-4, weight_decay=0.0, **options)
    p.grad = torch.ones_like(p)
    for _ in range(steps):
        optimizer.step()
    return p.double()


def test_small_updates_are_lost_in_bf16_unless_something_is_done() -> None:
    assert (constant_descent(100) == 1).all()
    # Masters: 1 - 100 * 1e-4, to a bf16 number (distance 2^-8).
    assert ((constant_descent(100, master_weights=True) - 0.99).abs() <= 2.0**-9).all()
    # At random: each step moves an element by d = 2^-8 with a chance of 1e-4 / d, so the variance of a step is less
    # than 1e-4 d, and the mean of n elements has a standard deviation of at most sqrt(100 * 1e-4 d / n).
    found = constant_descent(100, stochastic_rounding=True)
    assert abs(float(found.mean()) - 0.99) < 5 * (100 * 1e-4 * 2.0**-8 / 4096) ** 0.5
    assert torch.equal(found, constant_descent(100, stochastic_rounding=True))
    assert not torch.equal(found, constant_descent(100, stochastic_rounding=True, seed=1))


def test_groups_and_steps_are_rounded_by_numbers_of_their_own() -> None:
    params = [torch.ones(1000, dtype=torch.bfloat16) for _ in range(2)]
    optimizer = gpt2c.AdamW([{"params": [p]} for p in params], lr=1e-3, weight_decay=0.0, stochastic_rounding=True)
    for p in params:
        p.grad = torch.ones_like(p)
    moves = []
    for _ in range(2):
        before = [p.clone() for p in params]
        optimizer.step()
        moves += [p != b for p, b in zip(params, before, strict=True)]
    # An element moves with a chance of 1e-3 / 2^-8, about a quarter: equal moves of 1000 elements are no coincidence.
    assert all(not torch.equal(a, b) for i, a in enumerate(moves) for b in moves[:i])


def test_masters_must_go_with_the_state() -> None:
    p = torch.ones(3, dtype=torch.bfloat16)
    p.grad = torch.ones_like(p)
    with_masters, without = gpt2c.AdamW([p], master_weights=True), gpt2c.AdamW([p])
    for optimizer in (with_masters, without):
        optimizer.step()
    state = with_masters.state_dict()
    state["param_groups"] = without.state_dict()["param_groups"]
    with pytest.raises(
        ValueError, match="parameter 0 has a master, expected none: it is torch.bfloat16, with master_weights=False"
    ):
        without.load_state_dict(state)
    state = without.state_dict()
    state["param_groups"] = with_masters.state_dict()["param_groups"]
    with pytest.raises(
        ValueError, match="parameter 0 has no master, expected one: it is torch.bfloat16, with master_weights=True"
    ):
        with_masters.load_state_dict(state)


def test_optimizer_takes_over_from_torchs() -> None:
    ours, theirs = torch.ones(50), torch.ones(50)
    first = torch.optim.AdamW([theirs])
    train(first, [theirs], 5)
    ours.copy_(theirs)
    second = gpt2c.AdamW([ours])
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # torch's own shares the number of steps
    train(first, [theirs], 5, start=5)
    train(second, [ours], 5, start=5)
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7)


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
        ({"seed": -1}, "AdamW: seed is -1, expected 0 or more"),
        (
            {"master_weights": True, "stochastic_rounding": True},
            "AdamW: master_weights and stochastic_rounding are both",
        ),
        ({"betas": (0.9, 1.0)}, r"AdamW: betas are \(0.9, 1.0\), expected both in \[0, 1\)"),
    ],
)
def test_optimizer_bad_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gpt2c.AdamW([torch.ones(1)], **settings)


def test_the_step_is_fp32_on_the_cpu_whatever_the_defaults() -> None:
    # In bf16, 256 + 1 is 256: the bias correction would stop there.
    torch.set_default_dtype(torch.bfloat16)
    try:
        param = torch.ones(3, requires_grad=True)
        optimizer = gpt2c.AdamW([param])
        param.grad = torch.ones(3, dtype=param.dtype)
        optimizer.step()
        saved = optimizer.state_dict()
        saved["state"][0]["step"] = torch.tensor(256.0)
        optimizer.load_state_dict(saved)
        optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    step = optimizer.state[param]["step"]
    assert step == 257 and step.dtype == torch.float32


def test_no_step_within_a_cuda_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="AdamW: step is called while a CUDA graph is captured"):
        gpt2c.AdamW([torch.ones(3, requires_grad=True)]).step()


def saved_by(optimizer: type[torch.optim.Optimizer], **options: object) -> dict:
    """The state dict of one of torch's optimizers after a step on ones (3)."""
    p = torch.nn.Parameter(torch.ones(3))
    made = optimizer([p], **options)
    train(made, [p], 1)
    return made.state_dict()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            lambda: saved_by(torch.optim.AdamW, maximize=True),
            "maximize is True, which is not supported, expected False",
        ),
        (lambda: saved_by(torch.optim.AdamW, amsgrad=True), "amsgrad is True, which is not supported"),
        (lambda: saved_by(torch.optim.SGD, momentum=0.9), "a group has 'momentum', which is no setting of it"),
        (lambda: saved_by(torch.optim.NAdam), "a group has 'momentum_decay', which is no setting of it"),
        (lambda: saved_by(torch.optim.RMSprop), "a group has 'momentum', which is no setting of it"),
    ],
)
def test_another_optimizers_state_is_refused(state: Callable, message: str) -> None:
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = gpt2c.AdamW([p])
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="AdamW: " + message):
        optimizer.load_state_dict(state())
    assert optimizer.state_dict() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["param_groups"][0].update(capturable=True), "capturable is True, which is not supported"),
        (lambda s: s["param_groups"][0].update(differentiable=True), "differentiable is True, which is not supported"),
        (lambda s: s["param_groups"][0].update(decoupled_weight_decay=False), "decoupled_weight_decay is False, as of"),
        (lambda s: s["param_groups"][0].pop("betas"), "a saved group lacks betas, expected the state of an AdamW"),
        (lambda s: s["state"][0].update(max_exp_avg_sq=torch.ones(3)), "of parameter 0 has max_exp_avg_sq, expected"),
        (lambda s: s["state"][0].pop("exp_avg"), "of parameter 0 lacks exp_avg"),
        (lambda s: s["state"][0].update(exp_avg=torch.ones(4)), r"exp_avg of parameter 0 has shape \(4,\), expected"),
        (lambda s: s["state"][0].update(step=torch.tensor(-1.0)), "step of parameter 0 is -1.0, expected a whole"),
        (lambda s: s["state"][0].update(step=torch.tensor(torch.nan)), "step of parameter 0 is nan, expected a whole"),
    ],
)
def test_a_state_that_is_not_ours_is_refused(change: Callable, message: str) -> None:
    saved = saved_by(torch.optim.AdamW)
    change(saved)
    with pytest.raises(ValueError, match="AdamW: .*" + message):
        gpt2c.AdamW([torch.nn.Parameter(torch.ones(3))]).load_state_dict(saved)


def test_options_that_change_nothing_are_taken() -> None:
    ours, theirs = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    for options in ({}, {"foreach": True}, {"fused": True}):
        made = torch.optim.AdamW([theirs], **options)
        train(made, [theirs], 2)
        optimizer = gpt2c.AdamW([ours], lr=1.0)
        optimizer.load_state_dict(made.state_dict())
        with torch.no_grad():
            ours.copy_(theirs)
        train(optimizer, [ours], 2, start=2)
        train(made, [theirs], 2, start=2)
        assert torch.allclose(ours, theirs, rtol=1e-6)
    saved = saved_by(torch.optim.Adam)  # without decay, Adam is AdamW
    saved["param_groups"][0].update(decoupled_weight_decay=False, name="all", initial_lr=0.1)
    gpt2c.AdamW([ours]).load_state_dict(saved)


def test_unknown_settings_of_a_group_are_refused() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    for option, message in (({"weigth_decay": 0.0}, "a group has 'weigth_decay'"), ({"maximize": True}, "maximize is")):
        with pytest.raises(ValueError, match=f"AdamW: {message}"):
            gpt2c.AdamW([{"params": [p], **option}])
        optimizer = gpt2c.AdamW([torch.ones(2)])
        with pytest.raises(ValueError, match=f"AdamW: {message}"):
            optimizer.add_param_group({"params": [p], **option})
        optimizer.param_groups[0].update(option)
        with pytest.raises(ValueError, match=f"AdamW: {message}"):
            optimizer.step()


@pytest.mark.parametrize("count", [1, 7])
def test_compiled_code_breaks_at_most_once_for_a_step(count: int) -> None:
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    params = [torch.nn.Parameter(torch.full((4,), float(i))) for i in range(count)]
    same = [torch.nn.Parameter(p.detach().clone()) for p in params]
    optimizer, plain = gpt2c.AdamW(params), gpt2c.AdamW(same)
    for p, q in zip(params, same, strict=True):
        p.grad, q.grad = torch.ones(4), torch.ones(4)

    def update(x: Tensor) -> Tensor:
        y = x * 2
        optimizer.step()
        return y + 1

    compiled = torch.compile(update, backend=backend)
    for _ in range(3):
        assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 3.0))
        plain.step()
    assert len(graphs) <= 2  # before and after it
    assert all(torch.equal(p, q) for p, q in zip(params, same, strict=True))
