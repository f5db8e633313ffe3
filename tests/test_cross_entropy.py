import pytest
import torch
from checks import (
    DTYPES,
    EDGES,
    MAGNITUDES,
    SIZES,
    assert_close,
    check_deterministic,
    check_double_use,
    check_finite_differences,
    check_op,
    opcheck,
    randn,
    shifted,
    strided,
    with_grads,
)
from torch import Tensor

from gpt2c import ops

forward, backward = torch.ops.gpt2c.cross_entropy_forward.default, torch.ops.gpt2c.cross_entropy_backward.default


def targets_for(N: int, V: int, ignored: bool = True) -> Tensor:
    targets = torch.randint(0, V, (N,))
    if ignored and N > 2:
        targets[1::3] = -100
    return targets


def check(logits: Tensor, targets: Tensor, **settings: int) -> None:
    check_op(
        "cross_entropy",
        lambda x: ops.cross_entropy(x, targets, **settings),
        lambda x: ops.cross_entropy_reference(x, targets, **settings).float(),
        {"logits": logits},
        floor=1.0 if logits.shape[1] == 1 else 0.0,  # one class: the gradient p - 1 is zero by cancellation
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("V", SIZES + EDGES + (1025, 3000))
def test_classes(backend: str, V: int, dtype: torch.dtype) -> None:
    check(randn(7, V, dtype=dtype, scale=2), targets_for(7, V))


@pytest.mark.parametrize("N", SIZES + EDGES)
def test_rows(backend: str, N: int) -> None:
    check(randn(N, 11, scale=2), targets_for(N, 11))


def test_gpt2_vocabulary(backend: str) -> None:
    check(randn(2, 50257), torch.tensor([0, 50256]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("V", [3, 64, 1023])
def test_misaligned(backend: str, V: int, dtype: torch.dtype) -> None:
    check(shifted(randn(5, V, dtype=dtype, scale=2)), targets_for(5, V))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", MAGNITUDES)
def test_magnitudes(backend: str, scale: float, dtype: torch.dtype) -> None:
    check(randn(9, 100, dtype=dtype, scale=scale), targets_for(9, 100))


@pytest.mark.parametrize("offset", [-1e4, 1e4])
@pytest.mark.parametrize("V", [5, 100])
def test_far_from_zero(backend: str, V: int, offset: float) -> None:
    # The logsumexp in fp32 would be wrong by 5e-4, and each probability by as much of itself.
    check((randn(9, V) * 1024).round() / 1024 + offset, targets_for(9, V))


def test_logsumexp(backend: str) -> None:
    # Equal terms, all of which fp32 would round in the same direction: by 2e-6 in all.
    logits = torch.full((1, 200_000), -0.3)
    logits[0, 7] = 0
    _, lse = forward(logits, torch.tensor([7]), -100)
    assert lse.dtype == torch.float64 and float(lse) == pytest.approx(float(logits.double().logsumexp(1)), abs=3e-7)


@pytest.mark.parametrize("value", [0.0, -1e4, 1e4])
def test_equal_values(backend: str, value: float) -> None:
    loss = ops.cross_entropy(torch.full((3, 100), value), torch.tensor([0, 50, 99]))
    assert float(loss) == pytest.approx(4.605170185988092, rel=2e-7)  # log 100


def test_first_and_last_class(backend: str) -> None:
    for target in (0, 32):
        check(randn(1, 33), torch.tensor([target]))


def test_all_ignored(backend: str) -> None:
    logits = randn(3, 5).requires_grad_()
    loss = ops.cross_entropy(logits, torch.full((3,), -100))
    assert loss.isnan()  # 0 / 0, as in torch
    assert torch.nn.functional.cross_entropy(logits, torch.full((3,), -100)).isnan()
    (dlogits,) = torch.autograd.grad(loss, logits)
    assert not dlogits.any()


def test_empty(backend: str) -> None:
    assert ops.cross_entropy(torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)).isnan()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_is_seen(backend: str, bad: float) -> None:
    for at in (0, 20, 32):
        logits = randn(3, 33)
        logits[1, at] = bad
        assert ops.cross_entropy(logits, torch.tensor([1, 2, 3])).isnan()


def test_minus_infinity_is_an_impossible_class(backend: str) -> None:
    logits = randn(2, 33)
    logits[:, 5] = -torch.inf
    check(logits, torch.tensor([1, 2]))
    assert ops.cross_entropy(logits, torch.tensor([1, 5])).isposinf()


def test_ignore_index(backend: str) -> None:
    targets = targets_for(9, 20, ignored=False)
    check(randn(9, 20), targets, ignore_index=int(targets[0]))


def test_torch_agrees(backend: str) -> None:
    logits, targets = randn(40, 77), targets_for(40, 77)
    expected = torch.nn.functional.cross_entropy(logits.double(), targets)
    assert_close("cross_entropy", "loss", ops.cross_entropy(logits, targets), expected, logits.dtype)


def test_non_contiguous(backend: str) -> None:
    targets = targets_for(9, 20)
    spaced = torch.stack([targets, targets + 1], 1)[:, 0]
    assert not spaced.is_contiguous()
    check(strided(randn(9, 20)), spaced)


def test_finite_differences(backend: str) -> None:
    targets = targets_for(4, 6)
    check_finite_differences(lambda x: ops.cross_entropy(x, targets), randn(4, 6))


def test_double_use(backend: str) -> None:
    targets = targets_for(4, 6)
    check_double_use(
        lambda x: ops.cross_entropy(x, targets),
        lambda x: ops.cross_entropy_reference(x, targets),
        "cross_entropy",
        randn(4, 6),
    )


def test_deterministic(backend: str) -> None:
    logits, targets = randn(301, 130), targets_for(301, 130)
    check_deterministic(lambda: with_grads(lambda x: ops.cross_entropy(x, targets), logits))


def test_opcheck(backend: str) -> None:
    logits, targets = randn(4, 6), targets_for(4, 6)
    loss, lse = forward(logits, targets, -100)
    opcheck(backward, loss, logits, targets, lse, -100)
    for grad in (False, True):
        opcheck(forward, logits.requires_grad_(grad), targets, -100)


@pytest.mark.parametrize(
    ("logits", "targets", "error", "message"),
    [
        (torch.ones(2, 3, 4), torch.zeros(2).long(), ValueError, r"logits has shape \(2, 3, 4\), expected \(N, V\)"),
        (torch.ones(2, 3), torch.zeros(3).long(), ValueError, r"targets has shape \(3,\), expected \(2,\)"),
        (torch.ones(2, 3), torch.zeros(2), TypeError, "targets has dtype torch.float32 and layout torch.st"),
        (torch.ones(2, 3), torch.tensor([0, 3]), IndexError, r"targets\[1\] is 3, expected \[0, 3\) or ignore_index"),
        (torch.ones(2, 3), torch.tensor([-1, 0]), IndexError, r"targets\[0\] is -1"),
        (torch.ones(2, 3).double(), torch.tensor([0, 0]), TypeError, "logits has dtype torch.float64"),
    ],
)
def test_bad_input(logits: Tensor, targets: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match="cross_entropy: .*" + message):
        ops.cross_entropy(logits, targets)
