import pytest
import torch
from checks import (
    DTYPES,
    EDGES,
    HALF_DTYPES,
    MAGNITUDES,
    SIZES,
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

from gpt2c import ops

forward, backward = torch.ops.gpt2c.layernorm_forward.default, torch.ops.gpt2c.layernorm_backward.default


def inputs(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> dict[str, torch.Tensor]:
    C = shape[-1]
    return {
        "x": randn(*shape, dtype=dtype, scale=scale),
        "weight": randn(C, dtype=dtype),
        "bias": randn(C, dtype=dtype),
    }


def fused_inputs(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> dict[str, torch.Tensor]:
    given = inputs(*shape, dtype=dtype, scale=scale)
    return {"x": given.pop("x"), "residual": randn(*shape, dtype=dtype, scale=scale), **given}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", SIZES + EDGES)
def test_reference(backend: str, C: int, dtype: torch.dtype) -> None:
    # A row of one element is its own mean: dx is zero by cancellation of terms that rstd = 1 / sqrt(eps) = 316
    # multiplies.
    floor = 316.0 if C == 1 else 0.0
    check_op("layernorm", ops.layernorm, ops.layernorm_reference, inputs(3, 7, C, dtype=dtype), floor=floor)
    given = fused_inputs(5, C, dtype=dtype)
    check_op("layernorm", ops.residual_layernorm, ops.residual_layernorm_reference, given, floor=floor)


@pytest.mark.parametrize("N", SIZES + EDGES + (0, 513))
def test_rows(backend: str, N: int) -> None:
    check_op("layernorm", ops.layernorm, ops.layernorm_reference, inputs(N, 24))
    check_op("layernorm", ops.residual_layernorm, ops.residual_layernorm_reference, fused_inputs(N, 24))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [2056, 4104, 6152, 12296])
def test_long_rows(backend: str, C: int, dtype: torch.dtype) -> None:
    """Longer than what the CUDA kernels keep of a row in registers, of its sums and of a row in shared memory."""
    check_op("layernorm", ops.layernorm, ops.layernorm_reference, inputs(6, C, dtype=dtype))
    check_op("layernorm", ops.residual_layernorm, ops.residual_layernorm_reference, fused_inputs(2, C, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_misaligned(backend: str, dtype: torch.dtype) -> None:
    for name in ("x", "weight"):
        given = fused_inputs(5, 64, dtype=dtype)
        given[name] = shifted(given[name])
        check_op("layernorm", ops.residual_layernorm, ops.residual_layernorm_reference, given)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", MAGNITUDES)
def test_magnitudes(backend: str, scale: float, dtype: torch.dtype) -> None:
    # At 1e-4 the variance is no larger than eps, so both matter.
    check_op("layernorm", ops.layernorm, ops.layernorm_reference, inputs(9, 100, dtype=dtype, scale=scale))


def test_far_from_zero(backend: str) -> None:
    # A mean of 100 and a deviation of 1: E[x^2] - mean^2 would lose four digits. The input itself is exact in fp32.
    given = inputs(9, 768)
    given["x"] = (given["x"] * 1024).round() / 1024 + 100
    check_op("layernorm", ops.layernorm, ops.layernorm_reference, given)


@pytest.mark.parametrize("C", [768, 4104])
def test_rounding_of_the_mean_is_corrected(backend: str, C: int) -> None:
    # The sum of such values is wrong by some of their last digits, and so is the mean, which itself is a number of
    # fp32. Deviations are 100 of the last digit: without the correction the variance would be wrong by 1e-4.
    given = inputs(9, C)
    deviation = torch.randint(1, 200, (9, C // 2)) / 8
    given["x"] = (1398101 + torch.cat([deviation, -deviation], 1))[:, torch.randperm(C)]
    check_op("layernorm", ops.layernorm, ops.layernorm_reference, given)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4])
def test_equal_values(backend: str, value: float) -> None:
    given = inputs(3, 50)
    y = ops.layernorm(torch.full((3, 50), value), given["weight"], given["bias"])
    # The mean of equal values rounds to within an ulp of them, which rstd = 1 / sqrt(eps) = 316 multiplies.
    ulp = abs(value) * 2**-23 * 316
    assert (y - given["bias"]).abs().max() <= ulp * given["weight"].abs().max() + 1e-7


@pytest.mark.parametrize("C", [768, 1600, 4096])
def test_equal_large_values(backend: str, C: int) -> None:
    # Rounding may make the variance negative by more than eps here: 0 then, not nan.
    x = torch.logspace(3, 10, 40).round()[:, None].expand(40, C)
    y = ops.layernorm(x, torch.ones(C), torch.zeros(C))
    assert not y.isnan().any()
    # The mean is right to an ulp of the value, which rstd = 1 / sqrt(eps) = 316 multiplies.
    assert (y.abs() <= x * 2**-22 * 316).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_is_seen(backend: str, bad: float) -> None:
    for at in (0, 20, 32):
        x, weight, bias = inputs(3, 33).values()
        x[1, at] = bad
        y = ops.layernorm(x, weight, bias)
        assert y[1].isnan().any() and not y[0].isnan().any() and not y[2].isnan().any()


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_rounding(backend: str, dtype: torch.dtype) -> None:
    # h = x + residual is exact in fp32 up to one rounding, then rounded to 16 bits to nearest, ties to even.
    ulp, top, smallest = torch.finfo(dtype).eps, torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    ties = [(1.0, ulp / 2), (1.0 + ulp, ulp / 2), (smallest / 2, smallest * ulp)]
    ties += [(top, top * ulp / 8), (top, top * ulp / 4 * (1 + ulp)), (-top, -top), (torch.nan, 1.0), (torch.inf, 1.0)]
    x = torch.cat([torch.tensor([a for a, _ in ties]), randn(5000)]).to(dtype)
    residual = torch.cat([torch.tensor([b for _, b in ties]), randn(5000, scale=1e-2)]).to(dtype)
    h, _ = ops.residual_layernorm(x, residual, torch.ones_like(x), torch.zeros_like(x))
    expected = (x.float() + residual.float()).to(dtype)
    assert torch.equal(h.isnan(), expected.isnan()) and torch.equal(h.nan_to_num(), expected.nan_to_num())


def test_non_contiguous(backend: str) -> None:
    given = {name: strided(t) for name, t in fused_inputs(4, 5, 33).items()}
    assert not given["x"].is_contiguous() and not given["weight"].is_contiguous()
    check_op("layernorm", ops.residual_layernorm, ops.residual_layernorm_reference, given)


def test_eps(backend: str) -> None:
    check_op(
        "layernorm",
        lambda x, w, b: ops.layernorm(x, w, b, 0.5),
        lambda x, w, b: ops.layernorm_reference(x, w, b, 0.5),
        inputs(4, 20),
    )


def test_finite_differences(backend: str) -> None:
    check_finite_differences(ops.layernorm, *inputs(3, 11).values())
    check_finite_differences(lambda *a: torch.cat(ops.residual_layernorm(*a)), *fused_inputs(3, 11).values())


def test_one_of_two_outputs(backend: str) -> None:
    x, residual, weight, bias = (t.requires_grad_() for t in fused_inputs(4, 9).values())
    h, y = ops.residual_layernorm(x, residual, weight, bias)
    (dx,) = torch.autograd.grad(h.sum(), x, retain_graph=True)
    assert torch.equal(dx, torch.ones_like(x))
    alone = (x + residual).detach().requires_grad_()
    (dh,) = torch.autograd.grad(ops.layernorm(alone, weight, bias).square().sum(), alone)
    for got in torch.autograd.grad(y.square().sum(), (x, residual)):
        assert torch.equal(got, dh)


def test_double_use(backend: str) -> None:
    w, b = randn(13), randn(13)
    check_double_use(
        lambda x: ops.layernorm(x, w, b),
        lambda x: ops.layernorm_reference(x, w.double(), b.double()),
        "layernorm",
        randn(4, 13),
    )


def test_deterministic(backend: str) -> None:
    given = fused_inputs(301, 130).values()
    check_deterministic(lambda: with_grads(ops.residual_layernorm, *given))


def test_opcheck(backend: str) -> None:
    for grad in (False, True):
        x, residual, weight, bias = (t.requires_grad_(grad) for t in fused_inputs(2, 3, 10).values())
        opcheck(forward, x, residual, weight, bias, 1e-5)
        opcheck(forward, x, None, weight, bias, 1e-5)
    x, residual, weight, bias = fused_inputs(2, 3, 10).values()
    h, y, mean, rstd = forward(x, residual, weight, bias, 1e-5)
    opcheck(backward, y, residual, h, weight, mean, rstd)
    opcheck(backward, y, None, h, weight, mean, rstd)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.ones(9)}, ValueError, r"layernorm: weight has shape \(9,\), expected \(8,\)"),
        ({"bias": torch.ones(2, 4)}, ValueError, r"layernorm: bias has shape \(2, 4\), expected \(8,\)"),
        ({"x": torch.ones(3, 8, dtype=torch.float64)}, TypeError, "x has dtype torch.float64"),
        ({"x": torch.ones(3, 8, dtype=torch.int64)}, TypeError, "x has dtype torch.int64"),
        (
            {"x": torch.ones(3, 8, dtype=torch.bfloat16)},
            TypeError,
            "weight has dtype torch.float32, expected torch.bfl",
        ),
        ({"eps": -1.0}, ValueError, "layernorm: eps is -1.0, expected 0 or more"),
        ({"x": torch.tensor(1.0)}, ValueError, r"layernorm: x has shape \(\), expected"),
        ({"weight": torch.ones(8, device="meta")}, ValueError, "weight is on meta, expected cpu"),
        ({"residual": torch.ones(2, 8)}, ValueError, r"residual has shape \(2, 8\), expected \(3, 8\)"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    given = {**fused_inputs(3, 8), **change}
    with pytest.raises(error, match=message):
        ops.residual_layernorm(**given)


def test_no_second_derivative() -> None:
    x, weight, bias = (t.requires_grad_() for t in inputs(3, 8).values())
    y = ops.layernorm(x, weight, bias).square().sum()
    with pytest.raises(NotImplementedError, match="layernorm: has no second derivative"):
        torch.autograd.grad(torch.autograd.grad(y, x, create_graph=True)[0].sum(), x)
