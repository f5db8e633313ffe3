import pytest
import torch
from checks import (
    DTYPES,
    assert_close,
    check_deterministic,
    check_double_use,
    check_finite_differences,
    check_op,
    opcheck,
    randn,
    strided,
    with_grads,
)
from torch import Tensor

from gpt2c import ops
from gpt2c.ops.linear_cross_entropy import CHUNK_ROWS

CHUNK = CHUNK_ROWS["cpu"]  # GPUs take more rows at a time

forward = torch.ops.gpt2c.linear_cross_entropy_forward.default


def problem(
    N: int, C: int, V: int, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> tuple[dict[str, Tensor], Tensor]:
    targets = torch.randint(0, V, (N,))
    targets[1::3] = -100
    return {"x": randn(N, C, dtype=dtype, scale=scale), "weight": randn(V, C, dtype=dtype, scale=C**-0.5)}, targets


def check(given: dict[str, Tensor], targets: Tensor, **settings: int) -> None:
    check_op(
        "linear_cross_entropy",
        lambda x, w: ops.linear_cross_entropy(x, w, targets, **settings),
        lambda x, w: ops.linear_cross_entropy_reference(x, w, targets, **settings).float(),
        given,
        floor=1.0 if len(given["weight"]) == 1 else 0.0,  # one class: gradients are zero by cancellation
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("C", "V"), [(1, 5), (7, 1), (16, 64), (64, 65), (65, 1023)])
def test_reference(backend: str, C: int, V: int, dtype: torch.dtype) -> None:
    check(*problem(20, C, V, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5])
def test_chunks(backend: str, N: int, dtype: torch.dtype) -> None:
    check(*problem(N, 8, 33, dtype))


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_magnitudes(backend: str, scale: float) -> None:
    check(*problem(20, 16, 50, scale=scale))


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_scale(backend: str, dtype: torch.dtype) -> None:
    # In fp16 the scale itself is infinite, and a probability over the number of rows, 2e-6, has one bit left.
    given, targets = problem(600, 8, 1023, dtype)
    scale = 65536.0
    leaves = [t.requires_grad_() for t in given.values()]
    exact = [t.detach().double().requires_grad_() for t in given.values()]
    got = torch.autograd.grad(ops.linear_cross_entropy(*leaves, targets) * scale, leaves)
    expected = torch.autograd.grad(ops.linear_cross_entropy_reference(*exact, targets) * scale, exact)
    for name, a, b in zip(("dx", "dweight"), got, expected, strict=True):
        assert_close("linear_cross_entropy", name, a, b, dtype)


@pytest.mark.parametrize("vocab_size", [1, 40, 63, 64])
def test_padding(backend: str, vocab_size: int) -> None:
    given, targets = problem(300, 8, 64)
    targets = torch.where(targets >= 0, targets % vocab_size, targets)
    if vocab_size > 1:
        for padding in (1e3, torch.nan):  # 1e3 would win every softmax
            given["weight"][vocab_size:] = padding
            check_real_rows(given, targets, vocab_size)
    weight = given["weight"].requires_grad_()
    (dweight,) = torch.autograd.grad(
        ops.linear_cross_entropy(given["x"], weight, targets, vocab_size=vocab_size), weight
    )
    assert not dweight[vocab_size:].any()


def check_real_rows(given: dict[str, Tensor], targets: Tensor, vocab_size: int) -> None:
    x, weight = given["x"], given["weight"].clone().requires_grad_()
    expected = with_grads(lambda x, w: ops.linear_cross_entropy(x, w, targets), x, given["weight"][:vocab_size])
    x = x.clone().requires_grad_()
    loss = ops.linear_cross_entropy(x, weight, targets, vocab_size=vocab_size)
    upstream = torch.randn((), generator=torch.Generator().manual_seed(1))  # as with_grads has it
    dx, dweight = torch.autograd.grad(loss, (x, weight), upstream)
    for name, got, want in zip(("loss", "dx", "dweight"), (loss, dx, dweight[:vocab_size]), expected, strict=True):
        assert_close("linear_cross_entropy", name, got, want, torch.float32)


def test_equal_values(backend: str) -> None:
    loss = ops.linear_cross_entropy(torch.zeros(3, 4), torch.ones(100, 4), torch.tensor([0, 50, 99]))
    assert float(loss) == pytest.approx(4.605170185988092, rel=2e-7)  # log 100


def test_all_ignored(backend: str) -> None:
    x, weight = randn(3, 4).requires_grad_(), randn(5, 4).requires_grad_()
    loss = ops.linear_cross_entropy(x, weight, torch.full((3,), -100))
    assert loss.isnan()  # 0 / 0, as in torch
    for grad in torch.autograd.grad(loss, (x, weight)):
        assert not grad.any()


def test_empty(backend: str) -> None:
    x, weight = torch.zeros(0, 4, requires_grad=True), randn(5, 4).requires_grad_()
    loss = ops.linear_cross_entropy(x, weight, torch.zeros(0, dtype=torch.int64))
    dx, dweight = torch.autograd.grad(loss, (x, weight))
    assert loss.isnan() and dx.shape == (0, 4) and not dweight.nan_to_num().any()


def test_same_as_the_two_ops(backend: str) -> None:
    given, targets = problem(300, 8, 33)
    expected = with_grads(lambda x, w: ops.cross_entropy(x @ w.T, targets), *given.values())
    got = with_grads(lambda x, w: ops.linear_cross_entropy(x, w, targets), *given.values())
    for name, a, b in zip(("loss", "dx", "dweight"), got, expected, strict=True):
        assert_close("linear_cross_entropy", name, a, b, torch.float32)


def test_without_gradient(backend: str) -> None:
    given, targets = problem(300, 8, 33)
    expected = with_grads(lambda x, w: ops.linear_cross_entropy(x, w, targets), *given.values())[0]
    with torch.no_grad():
        assert torch.equal(ops.linear_cross_entropy(**given, targets=targets), expected)


def test_non_contiguous(backend: str) -> None:
    given, targets = problem(300, 8, 33)
    check({name: strided(t) for name, t in given.items()}, torch.stack([targets, targets], 1)[:, 0])


def test_finite_differences(backend: str) -> None:
    given, targets = problem(5, 4, 6)
    check_finite_differences(lambda x, w: ops.linear_cross_entropy(x, w, targets), *given.values())


def test_double_use(backend: str) -> None:
    given, targets = problem(5, 4, 6)
    weight = given["weight"]
    check_double_use(
        lambda x: ops.linear_cross_entropy(x, weight, targets),
        lambda x: ops.linear_cross_entropy_reference(x, weight.double(), targets),
        "linear_cross_entropy",
        given["x"],
    )


def test_deterministic(backend: str) -> None:
    # For shapes whose matrix products torch itself rounds alike on any number of threads.
    given, targets = problem(600, 64, 130)
    check_deterministic(lambda: with_grads(lambda x, w: ops.linear_cross_entropy(x, w, targets), *given.values()))


def test_opcheck(backend: str) -> None:
    given, targets = problem(5, 4, 6)
    for need_grads in ((False, False), (True, False), (True, True)):
        opcheck(forward, *given.values(), targets, -100, 6, *need_grads)
    x, weight = (t.requires_grad_() for t in given.values())
    opcheck(forward, x, weight, targets, -100, 6, True, True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(2, 3, 4)}, ValueError, r"x has shape \(2, 3, 4\), expected \(N, C\)"),
        ({"weight": torch.ones(5, 3)}, ValueError, r"weight has shape \(5, 3\), expected \(5, 4\)"),
        ({"weight": torch.tensor(1.0)}, ValueError, r"weight has shape \(\), expected \(V, C\)"),
        ({"targets": torch.zeros(3).long()}, ValueError, r"targets has shape \(3,\), expected \(2,\)"),
        ({"targets": torch.tensor([0, 5])}, IndexError, r"targets\[1\] is 5, expected \[0, 5\)"),
        ({"targets": torch.tensor([0, 4]), "vocab_size": 4}, IndexError, r"targets\[1\] is 4, expected \[0, 4\)"),
        ({"vocab_size": 6}, ValueError, "vocab_size is 6, expected 1 to 5, the rows of weight"),
        ({"vocab_size": 0}, ValueError, "vocab_size is 0, expected 1 to 5, the rows of weight"),
        ({"weight": torch.ones(5, 4).bfloat16()}, TypeError, "weight has dtype torch.bfloat16"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    given = {"x": torch.ones(2, 4), "weight": torch.ones(5, 4), "targets": torch.tensor([0, 4]), **change}
    with pytest.raises(error, match="linear_cross_entropy: .*" + message):
        ops.linear_cross_entropy(**given)


def test_no_second_derivative() -> None:
    given, targets = problem(5, 4, 6)
    x = given["x"].requires_grad_()
    (dx,) = torch.autograd.grad(ops.linear_cross_entropy(x, given["weight"], targets) ** 2, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="linear_cross_entropy: has no second derivative"):
        dx.square().sum().backward()


def test_backward_again(backend: str) -> None:
    """The first backward gives its gradients away; a second one has to compute them again."""
    given, targets = problem(300, 8, 33)
    leaves = [t.requires_grad_() for t in given.values()]
    loss = ops.linear_cross_entropy(*leaves, targets)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    copies = [t.clone() for t in first]
    for t in first:
        t.zero_()
    second = torch.autograd.grad(loss, leaves)
    for a, b in zip(copies, second, strict=True):
        assert torch.equal(a, b)


def test_a_frozen_weight_gets_no_gradient_and_x_the_same(backend):
    x, weight, targets = torch.randn(2 * CHUNK + 5, 24), torch.randn(40, 24), torch.randint(0, 37, (2 * CHUNK + 5,))
    gradients = []
    for learns in (True, False):
        given, w = x.clone().requires_grad_(), weight.clone().requires_grad_(learns)
        ops.linear_cross_entropy(given, w, targets, vocab_size=37).backward()
        gradients.append(given.grad)
        assert (w.grad is not None) is learns
    assert torch.equal(*gradients)
    assert forward(x, weight, targets, -100, 37, True, False)[2].numel() == 0, "it is not computed either"
