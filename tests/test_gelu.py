import pytest
import torch
from checks import (
    DTYPES,
    EDGES,
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

FORMS = ("tanh", "none")
forward, backward = torch.ops.gpt2c.gelu_forward.default, torch.ops.gpt2c.gelu_backward.default


def check(form: str, x: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    if bias is None:
        check_op("gelu", lambda x: ops.gelu(x, form), lambda x: ops.gelu_reference(x, form), {"x": x})
    else:
        check_op(
            "gelu",
            lambda x, b: ops.bias_gelu(x, b, form),
            lambda x, b: ops.bias_gelu_reference(x, b, form),
            {"x": x, "bias": bias},
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("C", SIZES + EDGES)
def test_reference(backend: str, C: int, form: str, dtype: torch.dtype) -> None:
    check(form, randn(3, C, dtype=dtype, scale=3))
    check(form, randn(3, 7, C, dtype=dtype, scale=3), randn(C, dtype=dtype))


@pytest.mark.parametrize("N", SIZES + EDGES + (0, 513))
def test_rows(backend: str, N: int) -> None:
    check("tanh", randn(N, 10), randn(10))


def test_more_blocks_than_rows_of_a_piece(backend: str) -> None:
    """CUDA's blocks take several rows where there are many; misaligned, a row has 128 elements."""
    check("tanh", randn(2115, 8), randn(8))
    check("tanh", shifted(randn(2113 * 128 + 3)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_misaligned(backend: str, dtype: torch.dtype) -> None:
    check("tanh", shifted(randn(5, 64, dtype=dtype)), randn(64, dtype=dtype))
    check("none", randn(5, 64, dtype=dtype), shifted(randn(64, dtype=dtype)))
    check("none", shifted(randn(321, dtype=dtype)))


@pytest.mark.parametrize("shape", [(), (0,), (4097,), (2, 3, 5, 7), (4, 0)])
def test_shapes(backend: str, shape: tuple[int, ...]) -> None:
    check("tanh", randn(*shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", MAGNITUDES)
@pytest.mark.parametrize("form", FORMS)
def test_magnitudes(backend: str, form: str, scale: float, dtype: torch.dtype) -> None:
    check(form, randn(9, 100, dtype=dtype, scale=scale))


@pytest.mark.parametrize("form", FORMS)
def test_every_binade(backend: str, form: str) -> None:
    # Each value on its own scale, both tails included: relative to itself, not to the largest.
    x = torch.cat([s * torch.logspace(-30, 1, 500) for s in (1.0, -1.0)])
    y, expected = ops.gelu(x, form).double(), ops.gelu_reference(x.double(), form)
    if form == "tanh":  # the reference's own 1 + tanh cancels below -4
        x, y, expected = x[x > -4], y[x > -4], expected[x > -4]
    # exp's argument has a rounding error of x^2 / 2 * 6e-8, which is its result's relative error: 3e-6 at 10.
    error = (y - expected).abs() / expected.abs()
    assert error.max() < 4e-6, f"x = {x[error.argmax()]}"


@pytest.mark.parametrize("form", FORMS)
def test_extremes(backend: str, form: str) -> None:
    x = torch.tensor([0.0, 60.0, -60.0, 1e18, torch.inf, torch.nan])
    y = ops.gelu(x, form)
    assert torch.equal(y[[0, 1, 3, 4]], x[[0, 1, 3, 4]])
    assert y[2].abs() < 1e-36 and y[5].isnan()


def test_far_out_slopes(backend: str) -> None:
    x = torch.cat([s * torch.logspace(1.5, 18, 50) for s in (1.0, -1.0)]).requires_grad_()
    for form in FORMS:
        y = ops.gelu(x, form)
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert torch.allclose(y, x.relu(), rtol=0, atol=1e-30) and torch.allclose(dx, (x > 0).float(), atol=1e-30)


def test_non_contiguous(backend: str) -> None:
    check("tanh", strided(randn(4, 5, 33)))
    check("tanh", strided(randn(4, 5, 33)), strided(randn(33)))


@pytest.mark.parametrize("form", FORMS)
def test_finite_differences(backend: str, form: str) -> None:
    check_finite_differences(lambda x: ops.gelu(x, form), randn(3, 11))
    check_finite_differences(lambda x, b: ops.bias_gelu(x, b, form), randn(3, 11), randn(11))


def test_double_use(backend: str) -> None:
    check_double_use(ops.gelu, ops.gelu_reference, "gelu", randn(4, 13))


def test_deterministic(backend: str) -> None:
    x, bias = randn(301, 130), randn(130)
    check_deterministic(lambda: with_grads(ops.bias_gelu, x, bias) + with_grads(ops.gelu, x))


def test_opcheck(backend: str) -> None:
    x, bias = randn(3, 10), randn(10)
    for given in (None, bias):
        opcheck(forward, x, given, "tanh")
        opcheck(backward, x, x, given, "none")
    opcheck(forward, x.requires_grad_(), bias.requires_grad_(), "tanh")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"approximate": "erf"}, ValueError, "gelu: approximate is 'erf', expected 'tanh' or 'none'"),
        ({"bias": torch.ones(9)}, ValueError, r"gelu: bias has shape \(9,\), expected \(8,\)"),
        ({"x": torch.ones(3, 8, dtype=torch.float16)}, TypeError, "x has dtype torch.float16"),
        ({"bias": torch.ones(8, dtype=torch.bfloat16)}, TypeError, "bias has dtype torch.bfloat16"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.bias_gelu(**{"x": torch.ones(3, 8), "bias": torch.ones(8), **change})
