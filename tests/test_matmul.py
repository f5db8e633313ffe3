import pytest
import torch
from checks import (
    DTYPES,
    EDGES,
    MAGNITUDES,
    SIZES,
    check_deterministic,
    check_double_use,
    check_op,
    opcheck,
    randn,
    shifted,
    strided,
    with_grads,
)
from torch import Tensor

from gpt2c import ops
from gpt2c.ops.matmul import multiply

# One past a stretch of k (384), the lines of a task (64 and 96) and its tile (4 or 8 rows, up to 48 columns).
DEPTHS = (383, 384, 385, 769)


def inputs(M: int, K: int, N: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> dict[str, Tensor]:
    return {
        "a": randn(M, K, dtype=dtype, scale=scale),
        "b": randn(K, N, dtype=dtype),
        "bias": randn(N, dtype=dtype, scale=scale),
    }


def check(given: dict[str, Tensor], floor: float = 0.0) -> None:
    check_op("matmul", ops.matmul, ops.matmul_reference, given, floor=floor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES + EDGES)
def test_each_size(backend: str, size: int, dtype: torch.dtype) -> None:
    # One dot product, or one column, may cancel: then the size of its terms is what counts.
    for shape in ((size, 9, 11), (9, size, 11), (9, 11, size)):
        check(inputs(*shape, dtype=dtype), floor=3.0)


@pytest.mark.parametrize("K", DEPTHS)
@pytest.mark.parametrize(("M", "N"), [(5, 97), (70, 10), (65, 65)])
def test_stretches_of_k(backend: str, M: int, N: int, K: int) -> None:
    check(inputs(M, K, N))


def test_several_panels() -> None:
    """More of the shared operand than is packed at a time."""
    for M, N in ((600, 700), (700, 600)):
        check({k: v for k, v in inputs(M, 2500, N).items() if k != "bias"})


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_empty(backend: str, shape: tuple[int, int, int]) -> None:
    check(inputs(*shape))
    given = inputs(*shape)
    assert torch.equal(ops.matmul(given["a"], given["b"]), given["a"] @ given["b"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "change", [shifted, strided, lambda x: x.t().contiguous().t(), lambda x: x.repeat(1, 2)[:, : x.shape[1]]]
)
def test_layouts(backend: str, change, dtype: torch.dtype) -> None:
    for name in ("a", "b"):
        given = inputs(21, 50, 37, dtype=dtype)
        given[name] = change(given[name])
        check(given)
    given = inputs(21, 50, 37, dtype=dtype)
    given["bias"] = shifted(given["bias"])
    check(given)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", MAGNITUDES)
def test_magnitudes(backend: str, scale: float, dtype: torch.dtype) -> None:
    if dtype == torch.float16:
        scale = min(scale, 1e2)  # sums of 40 products stay below 65504
    check(inputs(9, 40, 20, dtype=dtype, scale=scale))


def test_values_that_are_not_finite_stay_in_their_row(backend: str) -> None:
    a, b, _ = inputs(20, 30, 40).values()
    a[7, 3] = torch.inf
    a[11, 5] = torch.nan
    c = ops.matmul(a, b)
    assert c[7].isinf().all() and c[11].isnan().all()
    assert c[[i for i in range(20) if i not in (7, 11)]].isfinite().all()


@pytest.mark.parametrize("c_layout", ["dense", "rows apart", "columns first"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accumulate(backend: str, dtype: torch.dtype, c_layout: str) -> None:
    a, b, _ = inputs(50, 400, 70, dtype=dtype).values()
    c = torch.randn(50, 70)
    expected = c.double() + a.double() @ b.double()
    if c_layout == "rows apart":
        c = torch.full((50, 90), torch.nan)[:, :70].copy_(c)
    if c_layout == "columns first":
        c = c.t().contiguous().t()
    multiply(a, b, c, accumulate=True)
    torch.testing.assert_close(c.double(), expected, rtol=2e-5, atol=1e-4 if dtype == torch.float32 else 0.3)


@pytest.mark.parametrize("shape", [(100, 800, 300), (300, 800, 100)])
def test_threads(shape: tuple[int, int, int]) -> None:
    given = inputs(*shape)
    check_deterministic(lambda: with_grads(ops.matmul, *given.values()))


def test_a_row_does_not_depend_on_the_others(backend: str) -> None:
    if backend.startswith("cuda"):
        pytest.skip("CUDA's product is torch's, which promises no such thing")
    a, b, bias = inputs(150, 500, 120).values()
    c = ops.matmul(a, b, bias)
    for rows in (slice(0, 1), slice(3, 10), slice(70, 140)):
        assert torch.equal(ops.matmul(a[rows], b, bias), c[rows])


def test_double_use() -> None:
    b = randn(30, 30)
    check_double_use(lambda x: ops.matmul(x, b), lambda x: x @ b.double(), "matmul", randn(30, 30))


def test_only_wanted_gradients() -> None:
    a, b, bias = inputs(5, 6, 7).values()
    (ops.matmul(a, b.requires_grad_(), bias)).sum().backward()
    assert a.grad is None and bias.grad is None
    torch.testing.assert_close(b.grad, a.sum(0)[:, None].expand(6, 7))


def test_opcheck() -> None:
    a, b, bias = inputs(5, 6, 7).values()
    opcheck(torch.ops.gpt2c.matmul.default, a.requires_grad_(), b.requires_grad_(), bias.requires_grad_())
    opcheck(torch.ops.gpt2c.matmul.default, a, b, None)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"a": torch.zeros(3)}, ValueError, r"matmul: a has shape \(3,\), expected \(M, K\)"),
        ({"b": torch.zeros(5, 7)}, ValueError, r"matmul: b has shape \(5, 7\), expected \(6, 7\)"),
        ({"bias": torch.zeros(6)}, ValueError, r"matmul: bias has shape \(6,\), expected \(7,\)"),
        ({"b": torch.zeros(6, 7, dtype=torch.bfloat16)}, TypeError, "matmul: b has dtype torch.bfloat16"),
        ({"a": torch.zeros(3, 6, dtype=torch.float64)}, TypeError, "matmul: a has dtype torch.float64"),
    ],
)
def test_wrong_arguments(change: dict[str, Tensor], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.matmul(**{**inputs(5, 6, 7), **change})
