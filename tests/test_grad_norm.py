import pytest
import torch
from checks import DTYPES, EDGES, MAGNITUDES, SIZES, assert_close, check_deterministic, opcheck, randn, strided
from torch import Tensor

from gpt2c import ops


def check(grads: list[Tensor]) -> None:
    assert_close("grad_norm", "norm", ops.grad_norm(grads), ops.grad_norm_reference(grads), grads[0].dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES + EDGES + (1025, 16385, 0))
def test_one(backend: str, size: int, dtype: torch.dtype) -> None:
    check([randn(size, dtype=dtype)])


def test_list(backend: str) -> None:
    check([randn(3, 5), randn(), randn(0), randn(40000), strided(randn(4, 5))])


@pytest.mark.parametrize("scale", MAGNITUDES)
def test_magnitudes(backend: str, scale: float) -> None:
    check([randn(1000, scale=scale)])


def test_many_tensors(backend: str) -> None:
    # Equal terms, all of which fp32 would round in the same direction: by 5e-6 in all.
    check([torch.full((1,), 0.7)] * 1000)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_non_finite_is_seen(backend: str, bad: float) -> None:
    for at in (0, 1030, 19999):
        grad = randn(20000)
        grad[at] = bad
        assert not torch.isfinite(ops.grad_norm([randn(5), grad]))


def test_deterministic(backend: str) -> None:
    grads = [randn(100000), randn(7)]
    check_deterministic(lambda: [ops.grad_norm(grads)])


def test_opcheck(backend: str) -> None:
    opcheck(torch.ops.gpt2c.grad_norm.default, [randn(3, 5), randn(4)])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="grad_norm: grads is empty, expected at least one tensor"):
        ops.grad_norm([])
    with pytest.raises(TypeError, match=r"grad_norm: grads\[1\] has dtype torch.bfloat16, expected torch.float32"):
        ops.grad_norm([torch.ones(1), torch.ones(1).bfloat16()])
