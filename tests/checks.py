"""What the tests of all ops share: comparing with the float64 reference, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from tolerances import TOLERANCES
from torch import Tensor

SIZES = (1, 7, 64, 1023)
# One past each vector (1, 4, 8, 16 lanes) and each tile.
EDGES = (5, 9, 17, 49, 65)
HALF_DTYPES = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *HALF_DTYPES)
MAGNITUDES = (1e-4, 1.0, 1e4)


def randn(*shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape) * scale).to(dtype)


def shifted(x: Tensor) -> Tensor:
    """The same values, contiguous, at an address of no alignment beyond the element's."""
    memory = torch.empty(x.numel() + 1, dtype=x.dtype)
    return memory[1:].view(x.shape).copy_(x)


def strided(x: Tensor) -> Tensor:
    """The same values with gaps between them, in every dimension, and another order of dimensions."""
    reversed_dims = tuple(range(x.dim()))[::-1]
    spaced = torch.full([2 * n + 1 for n in x.permute(reversed_dims).shape], torch.nan, dtype=torch.float64).to(x.dtype)
    view = spaced[tuple(slice(1, None, 2) for _ in x.shape)]
    view.copy_(x.permute(reversed_dims))
    return view.permute(reversed_dims)


def starts_of(*rows: Sequence[int]) -> Tensor:
    """Where each token's document begins, of rows of documents of these lengths."""
    return torch.stack([_starts_of(torch.tensor(lengths)) for lengths in rows])


def _starts_of(lengths: Tensor) -> Tensor:
    return (lengths.cumsum(0) - lengths).repeat_interleave(lengths)


def assert_close(op: str, name: str, got: Tensor, expected: Tensor, dtype: torch.dtype, floor: float = 0.0) -> None:
    """`got`, computed in `dtype`, against `expected` in float64; the worst coordinate is named on failure.

    floor: the size of the terms, where a result is zero by cancellation and its own size says nothing.
    """
    assert got.shape == expected.shape, f"{op}: {name} has shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if expected.numel() == 0:
        return
    rel, absolute = TOLERANCES[op][dtype]
    got, expected = got.detach().double(), expected.detach().double()
    allowed = rel * expected.abs() + absolute * expected.abs().max().clamp_min(floor)
    excess = torch.where(got == expected, 0.0, (got - expected).abs() / allowed.clamp_min(1e-300))
    excess = torch.where(excess.isnan(), torch.inf, excess)
    worst = int(excess.argmax())
    at = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), got.shape)) if got.dim() else ()
    assert excess.max() <= 1, (
        f"{op}: {name}{list(at)} is {got[at]:.9g}, expected {expected[at]:.9g}:"
        f" {excess.max():.3g} times the tolerance ({dtype}), max |expected| {expected.abs().max():.3g}"
    )


def as_tuple(value: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)


def check_op(
    op: str,
    run: Callable[..., Tensor | Sequence[Tensor]],
    reference: Callable[..., Tensor | Sequence[Tensor]],
    inputs: dict[str, Tensor],
    gradients: bool = True,
    floor: float = 0.0,
) -> None:
    """run(*inputs) and the gradients of its floating-point inputs against reference(*inputs) in float64."""
    dtype = next(t.dtype for t in inputs.values() if t.is_floating_point())
    given = {n: t.detach().requires_grad_(gradients and t.is_floating_point()) for n, t in inputs.items()}
    exact = {n: _double(t).requires_grad_(gradients and t.is_floating_point()) for n, t in inputs.items()}
    outputs, expected = as_tuple(run(*given.values())), as_tuple(reference(*exact.values()))
    assert len(outputs) == len(expected)
    for i, (got, want) in enumerate(zip(outputs, expected, strict=True)):
        assert_close(op, f"output {i}", got, want, dtype, floor)
    if not gradients:
        return
    upstream = [torch.randn_like(got) for got in outputs]
    names = [n for n, t in inputs.items() if t.is_floating_point()]
    got_grads = torch.autograd.grad(outputs, [given[n] for n in names], upstream)
    want_grads = torch.autograd.grad(expected, [exact[n] for n in names], [u.double() for u in upstream])
    for name, got, want in zip(names, got_grads, want_grads, strict=True):
        assert got.dtype == dtype
        assert_close(op, f"d{name}", got, want, dtype, floor)


def _double(t: Tensor) -> Tensor:
    return t.detach().double() if t.is_floating_point() else t


def check_finite_differences(run: Callable[..., Tensor], *inputs: Tensor, h: float = 1e-2) -> None:
    """Each input's gradient along a random direction, by central differences of the fp32 op itself.

    Differences have an error of order h^2 plus 1e-7 / h from rounding, about 1e-4 together; 3e-3 leaves room for the
    third derivatives of these ops.
    """
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    upstream = torch.randn_like(run(*inputs))

    def loss(*values: Tensor) -> Tensor:
        return (run(*values).double() * upstream.double()).sum()

    grads = torch.autograd.grad(loss(*inputs), inputs)
    for i, (x, grad) in enumerate(zip(inputs, grads, strict=True)):
        direction = torch.randn_like(x)
        direction /= direction.norm()
        with torch.no_grad():
            ends = [loss(*(v + s * h * direction if j == i else v for j, v in enumerate(inputs))) for s in (1, -1)]
        slope = float(ends[0] - ends[1]) / (2 * h)
        assert slope == pytest.approx(float((grad * direction).sum()), rel=3e-3, abs=3e-3), f"input {i}"


def check_deterministic(run: Callable[[], Sequence[Tensor]]) -> None:
    """Bit for bit the same on every number of threads and in a second run."""
    first = None
    for threads in (1, 2, 3, 5, 2):
        torch.set_num_threads(threads)
        outputs = [t.detach().clone() for t in run()]
        if first is None:
            first = outputs
        for i, (a, b) in enumerate(zip(outputs, first, strict=True)):
            assert torch.equal(a, b), f"output {i} with {threads} threads differs from that with 1"


def with_grads(run: Callable[..., Tensor | Sequence[Tensor]], *inputs: Tensor) -> list[Tensor]:
    """Outputs and gradients for fixed upstream gradients."""
    inputs = tuple(x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs)
    outputs = as_tuple(run(*inputs))
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [x for x in inputs if x.is_floating_point()], upstream)]


def check_double_use(
    run: Callable[[Tensor], Tensor], reference: Callable[[Tensor], Tensor], op: str, x: Tensor
) -> None:
    """An output used twice, a second backward through the same graph, and no change of the input."""
    before = x.clone()
    x = x.detach().requires_grad_()
    exact = x.detach().double().requires_grad_()
    y, want = run(x), reference(exact)
    loss, expected = (y * y + 3 * y).sum(), (want * want + 3 * want).sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x)
    (wanted,) = torch.autograd.grad(expected, exact)
    assert torch.equal(first, second)
    assert_close(op, "dx", first, wanted, x.dtype)
    assert torch.equal(x.detach(), before)


def opcheck(op: torch._ops.OpOverload, *args: object) -> None:
    """torch.library.opcheck: schema, autograd registration, fake tensors and AOT dispatch with dynamic shapes."""
    torch.library.opcheck(op, args)
