import pytest
import torch
from checks import DTYPES, assert_close, check_deterministic, check_op, opcheck, randn, starts_of, strided, with_grads
from torch import Tensor

from gpt2c import ops
from gpt2c.generate import LayerCache
from gpt2c.ops.block import Kept

forward, backward = torch.ops.gpt2c.block_forward.default, torch.ops.gpt2c.block_backward.default
HEADS = 2


def weights_of(C: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    shapes = {"qkv": (C, 3 * C), "o": (C, C), "fc": (C, 4 * C), "proj": (4 * C, C)}
    named = {}
    for name in ops.BlockWeights._fields:
        part, kind = name.rsplit("_", 1)
        if part in shapes and kind == "weight":
            named[name] = randn(*shapes[part], dtype=dtype, scale=shapes[part][0] ** -0.5)
        else:
            named[name] = randn(shapes[part][1] if part in shapes else C, dtype=dtype)
    return named


def inputs(B: int, T: int, C: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"x": randn(B, T, C, dtype=dtype), "h": randn(B, T, C, dtype=dtype), **weights_of(C, dtype)}


def check(given: dict[str, Tensor], recompute: bool = False, starts: Tensor | None = None) -> None:
    check_op(
        "block",
        lambda x, h, *weights: ops.block(x, h, ops.BlockWeights(*weights), HEADS, recompute=recompute, starts=starts),
        lambda x, h, *weights: ops.block_reference(x, h, ops.BlockWeights(*weights), HEADS, starts=starts),
        given,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 7, 34), (3, 65, 16), (1, 20, 128)])
def test_reference(backend: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    check(inputs(*shape, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("recompute", [False, True])
def test_documents(backend: str, recompute: bool, dtype: torch.dtype) -> None:
    check(inputs(2, 73, 32, dtype), recompute, starts_of((1, 7, 65), (73,)))


def test_documents_without_gradient(backend: str) -> None:
    x, h, *weights = inputs(1, 20, 32).values()
    out = ops.block(x, h, weights, HEADS, starts=starts_of((7, 13)))
    for at in (slice(0, 7), slice(7, 20)):
        for got, alone in zip(out, ops.block(x[:, at], h[:, at], weights, HEADS), strict=True):
            assert_close("block", "output", got[:, at], alone, torch.float32)


def test_first_layer(backend: str) -> None:
    x, _, *weights = inputs(2, 7, 34).values()
    check_op(
        "block",
        lambda x, *weights: ops.block(x, None, ops.BlockWeights(*weights), HEADS),
        lambda x, *weights: ops.block_reference(x, None, ops.BlockWeights(*weights), HEADS),
        {"x": x, **dict(zip(ops.BlockWeights._fields, weights, strict=True))},
    )


@pytest.mark.parametrize("starts", [None, starts_of((9, 8), (17,))])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("first", [False, True])
def test_recomputing_changes_no_bit(backend: str, first: bool, dropout_p: float, starts: Tensor | None) -> None:
    x, h, *weights = inputs(2, 17, 32).values()
    seed = torch.tensor([5])

    def run(recompute: bool) -> list[Tensor]:
        torch.manual_seed(3)
        leaves = (x, *weights) if first else (x, *weights, h)
        return with_grads(
            lambda x, *rest: ops.block(
                x, rest[12] if len(rest) > 12 else None, rest[:12], HEADS, dropout_p=dropout_p, seed=seed,
                recompute=recompute, starts=starts,
            ),
            *leaves,
        )  # fmt: skip

    for a, b in zip(run(False), run(True), strict=True):
        assert torch.equal(a, b)


def test_dropout(backend: str) -> None:
    """Both branches are dropped at the given rate, and the gradient with them."""
    x, h, *weights = inputs(4, 33, 32).values()
    seed = torch.tensor([5])
    x.requires_grad_()
    out, h2 = ops.block(x, h, weights, HEADS, dropout_p=0.25, seed=seed)
    a = h2 - (x + h)
    for branch in (out, a):
        assert (branch.abs() < 1e-6).float().mean() == pytest.approx(0.25, abs=0.05)
    plain_out, _ = ops.block(x, h, weights, HEADS)
    assert not torch.equal(out, plain_out)
    upstream = torch.randn_like(out)
    (dx,) = torch.autograd.grad(out, x, upstream, retain_graph=True)
    (same,) = torch.autograd.grad(out, x, upstream * (out != 0))  # what is dropped has no gradient
    assert torch.equal(dx, same)


def test_the_seed_drops_probabilities(backend: str) -> None:
    x, h, *weights = inputs(2, 9, 32).values()
    found = []
    for seed in (5, 5, 6):
        torch.manual_seed(0)  # of the branches' masks
        found.append(ops.block(x, h, weights, HEADS, dropout_p=0.5, seed=torch.tensor([seed]))[1])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_expectation_with_dropout() -> None:
    x, h, *weights = inputs(2, 9, 16).values()
    weights = [w * 0.1 for w in weights]
    seeds = torch.arange(2000)
    mean = sum(ops.block(x, h, weights, HEADS, dropout_p=0.1, seed=s[None])[1] for s in seeds) / len(seeds)
    expected = ops.block(x, h, weights, HEADS)[1]
    assert (mean - expected).abs().max() < 0.02 < (expected - x - h).abs().max()


def test_what_is_kept(backend: str) -> None:
    """The bytes that a layer keeps for its backward, as gpt2c/ops/block.py has them."""
    B, T, C = 2, 8, 32
    x, h, *weights = inputs(B, T, C).values()
    sizes = {}
    for recompute in (False, True):
        saved: dict[int, int] = {}

        def pack(t: Tensor, saved: dict[int, int] = saved) -> Tensor:
            saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            ops.block(x, h.requires_grad_(), weights, HEADS, recompute=recompute)
        for w in weights:
            saved.pop(w.untyped_storage().data_ptr(), None)
        sizes[recompute] = sum(saved.values())
    N, statistics = B * T, B * T * 4 * 4 + B * T * HEADS * 8
    assert sizes[False] == 4 * 10 * N * C + statistics
    assert sizes[True] == 4 * N * C


def test_cache(backend: str) -> None:
    x, h, *weights = inputs(2, 9, 32).values()
    whole = ops.block(x, h, weights, HEADS)
    cache = LayerCache(x, (2, HEADS, 9, 16), x.dtype)
    parts = [
        ops.cached_block(x[:, rows], h[:, rows], weights, HEADS, 1e-5, cache)
        for rows in (slice(0, 4), slice(4, 5), slice(5, 9))
    ]
    for i in range(2):
        assert_close("block", f"output {i}", torch.cat([p[i] for p in parts], 1), whole[i], torch.float32)


def test_non_contiguous(backend: str) -> None:
    given = inputs(2, 7, 34)
    for name in given:
        check({**given, name: strided(given[name])})


def test_unused_outputs() -> None:
    x, h, *weights = inputs(2, 7, 32).values()
    for used in (0, 1):
        leaves = [t.detach().double().requires_grad_() for t in (x, h, *weights)]
        reference = ops.block_reference(leaves[0], leaves[1], leaves[2:], HEADS)[used]
        x.requires_grad_()
        (got,) = torch.autograd.grad(ops.block(x, h, weights, HEADS)[used].sum(), x)
        (expected,) = torch.autograd.grad(reference.sum(), leaves[0])
        assert_close("block", "dx", got, expected, torch.float32)


def test_deterministic() -> None:
    x, h, *weights = inputs(2, 65, 64).values()
    check_deterministic(lambda: with_grads(lambda x, h, *w: ops.block(x, h, w, HEADS), x, h, *weights))


def test_without_gradient(backend: str) -> None:
    x, h, *weights = inputs(2, 7, 32).values()
    with torch.no_grad():
        plain = ops.block(x, h, weights, HEADS)
    for a, b in zip(plain, ops.block(x.requires_grad_(), h, weights, HEADS), strict=True):
        assert torch.equal(a, b) and not a.requires_grad


@pytest.mark.parametrize("keep", [0, 3, len(Kept._fields)])
def test_opcheck(keep: int) -> None:
    x, h, *weights = inputs(2, 5, 16).values()
    starts = starts_of((2, 3), (5,))
    for stream, starts_ in ((h, starts), (None, None)):
        opcheck(forward, x, stream, HEADS, 1e-5, 0.0, None, starts_, keep, *weights)
    if keep:
        out, h2, *kept = forward(x, h, HEADS, 1e-5, 0.0, None, starts, keep, *weights)
        if keep > 3:
            kept[Kept._fields.index("h2")] = h2.view(10, 16)
        opcheck(backward, torch.randn_like(out), h, kept, weights, HEADS, 1e-5, 0.0, None, starts)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(3, 4)}, ValueError, r"block: x has shape \(3, 4\), expected \(B, T, C\)"),
        ({"h": torch.zeros(2, 3, 5)}, ValueError, r"block: h has shape \(2, 3, 5\), expected \(2, 3, 4\)"),
        ({"h": torch.zeros(2, 3, 4, dtype=torch.bfloat16)}, TypeError, "block: h has dtype torch.bfloat16"),
        ({"fc_bias": torch.zeros(4)}, ValueError, r"block: fc_bias has shape \(4,\), expected \(16,\)"),
        ({"n_head": 3}, ValueError, "block: n_head is 3, expected a divisor of 4, the width of x"),
        ({"dropout_p": 0.5}, ValueError, "block: dropout_p is 0.5 but seed is None, expected an int64 tensor of one"),
        ({"dropout_p": 0.5, "seed": torch.ones(1)}, TypeError, "block: seed has dtype torch.float32"),
        ({"dropout_p": 0.5, "seed": torch.ones(1).int()}, TypeError, "block: seed has dtype torch.int32"),
        (
            {"dropout_p": 0.5, "seed": torch.ones(2).long()},
            ValueError,
            r"block: seed has shape \(2,\), expected one el",
        ),
        (
            {"dropout_p": 0.5, "seed": torch.ones(0).long()},
            ValueError,
            r"block: seed has shape \(0,\), expected one el",
        ),
        ({"dropout_p": 1.0, "seed": torch.ones(1).long()}, ValueError, r"block: dropout_p is 1.0, expected \[0, 1\)"),
        ({"dropout_p": -0.1, "seed": torch.ones(1).long()}, ValueError, r"block: dropout_p is -0.1, expected \[0, 1\)"),
        ({"dropout_p": -0.1}, ValueError, r"block: dropout_p is -0.1, expected \[0, 1\)"),
        ({"dropout_p": float("nan")}, ValueError, r"block: dropout_p is nan, expected \[0, 1\)"),
        ({"eps": -1.0}, ValueError, "block: eps is -1.0, expected 0 or more"),
        ({"starts": torch.zeros(2, 4).long()}, ValueError, r"block: starts has shape \(2, 4\), expected \(2, 3\)"),
        ({"starts": torch.zeros(2, 3)}, TypeError, "block: starts has dtype torch.float32"),
        ({"starts": torch.ones(2, 3).long()}, ValueError, r"block: starts\[0, 0\] is 1, expected 0 "),
    ],
)
def test_wrong_arguments(change: dict, error: type[Exception], message: str) -> None:
    given = {**inputs(2, 3, 4), "n_head": HEADS, **change}
    x, h, n_head = given.pop("x"), given.pop("h"), given.pop("n_head")
    options = {name: given.pop(name) for name in ("starts", "dropout_p", "seed", "eps") if name in given}
    weights = ops.BlockWeights(**given)
    with pytest.raises(error, match=message):
        ops.block(x, h, weights, n_head, **options)
    with pytest.raises(error, match=message):
        ops.block(x.requires_grad_(), h, weights, n_head, **options)


def test_a_head_of_more_than_the_kernels_take() -> None:
    x, h, *weights = inputs(1, 1, 257).values()
    with pytest.raises(ValueError, match="block: the head dimension is 257, expected 1 to 256"):
        ops.block(x, h, weights, 1)
