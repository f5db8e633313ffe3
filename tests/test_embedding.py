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
    starts_of,
    strided,
    with_grads,
)
from torch import Tensor

from gpt2c import ops

forward, backward = torch.ops.gpt2c.embedding_forward.default, torch.ops.gpt2c.embedding_backward_.default


def check(idx: Tensor, wte: Tensor, wpe: Tensor, start: int = 0, starts: Tensor | None = None) -> None:
    check_op(
        "embedding",
        lambda wte, wpe: ops.embedding(idx, wte, wpe, start, starts=starts),
        lambda wte, wpe: ops.embedding_reference(idx, wte, wpe, start, starts=starts),
        {"wte": wte, "wpe": wpe},
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", SIZES + EDGES)
def test_width(backend: str, C: int, dtype: torch.dtype) -> None:
    check(torch.randint(0, 11, (2, 7)), randn(11, C, dtype=dtype), randn(9, C, dtype=dtype))


@pytest.mark.parametrize(("B", "T"), [(1, 1), (3, 7), (2, 64), (1, 1023), (0, 5), (5, 0)])
def test_tokens(backend: str, B: int, T: int) -> None:
    # 20 ids, so that most come many times.
    check(torch.randint(0, 20, (B, T)), randn(20, 10), randn(max(T, 1), 10))


def test_one_token_everywhere(backend: str) -> None:
    check(torch.full((4, 100), 3), randn(5, 65), randn(100, 65))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", MAGNITUDES)
def test_magnitudes(backend: str, scale: float, dtype: torch.dtype) -> None:
    wte, wpe = randn(20, 10, dtype=dtype, scale=scale), randn(7, 10, dtype=dtype, scale=scale)
    check(torch.randint(0, 20, (3, 7)), wte, wpe)


def test_start(backend: str) -> None:
    check(torch.randint(0, 20, (3, 7)), randn(20, 10), randn(12, 10), start=5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [10, 64])
@pytest.mark.parametrize("start", [0, 2])
def test_documents(backend: str, start: int, C: int, dtype: torch.dtype) -> None:
    # Of some positions there are 200 tokens, of others one.
    starts = starts_of([1] * 150 + [7, 1, 65], (223,))
    check(torch.randint(0, 20, (2, 223)), randn(20, C, dtype=dtype), randn(230, C, dtype=dtype), start, starts)


def test_documents_are_as_if_alone(backend: str) -> None:
    idx, wte, wpe = torch.randint(0, 9, (1, 20)), randn(9, 8), randn(20, 8)
    x = ops.embedding(idx, wte, wpe, starts=starts_of((7, 13)))
    for at in (slice(0, 7), slice(7, 20)):
        assert torch.equal(x[:, at], ops.embedding(idx[:, at], wte, wpe))


def test_vocab_size(backend: str) -> None:
    idx, wte, wpe = torch.randint(0, 20, (3, 7)), randn(32, 10).requires_grad_(), randn(7, 10)
    (dwte,) = torch.autograd.grad(ops.embedding(idx, wte, wpe, vocab_size=20).sum(), wte)
    assert dwte.shape == (32, 10) and not dwte[20:].any()
    with pytest.raises(IndexError, match=r"embedding: idx\[0, 0\] is 20, expected ids in \[0, 20\)"):
        ops.embedding(torch.tensor([[20]]), wte, wpe, vocab_size=20)


def test_weights_may_change_before_the_backward(backend: str) -> None:
    wte, wpe = randn(5, 4).requires_grad_(), randn(3, 4)
    x = ops.embedding(torch.tensor([[1, 2]]), wte, wpe)
    with torch.no_grad():
        wte.zero_()
    (dwte,) = torch.autograd.grad(x.sum(), wte)
    assert dwte.sum() == 8


def test_bad_ids_in_the_backward(backend: str) -> None:
    with pytest.raises(IndexError, match=r"embedding_backward: idx\[0, 1\] is out of range"):
        backward(randn(1, 2, 4), torch.tensor([[0, 9]]), randn(9, 4), 5, 0, None)


def test_nan_is_seen(backend: str) -> None:
    wte = randn(5, 9)
    wte[2, 8] = torch.nan
    x = ops.embedding(torch.tensor([[1, 2]]), wte, randn(3, 9))
    assert x.isnan().nonzero().tolist() == [[0, 1, 8]]


def test_non_contiguous(backend: str) -> None:
    idx = torch.randint(0, 20, (7, 6)).T[:, ::2]
    assert not idx.is_contiguous()
    check(idx, strided(randn(20, 10)), strided(randn(7, 10)))


def test_finite_differences(backend: str) -> None:
    idx = torch.tensor([[1, 1, 0]])
    check_finite_differences(lambda wte, wpe: ops.embedding(idx, wte, wpe), randn(3, 4), randn(3, 4))


def test_double_use(backend: str) -> None:
    idx, wpe = torch.tensor([[1, 1, 0]]), randn(3, 4)
    check_double_use(
        lambda wte: ops.embedding(idx, wte, wpe),
        lambda wte: ops.embedding_reference(idx, wte, wpe.double()),
        "embedding",
        randn(3, 4),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("starts", [None, starts_of((3, 4), (7,), (1, 6))])
def test_tied(backend: str, starts: Tensor | None, dtype: torch.dtype) -> None:
    """wte's gradients as embedding and as head become one."""
    idx = torch.randint(0, 9, (3, 7))

    def run(wte: torch.Tensor, wpe: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, head = ops.tied_embedding(idx, wte, wpe, starts=starts)
        return x, head * 2

    def reference(wte: torch.Tensor, wpe: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return ops.embedding_reference(idx, wte, wpe, starts=starts), wte * 2

    given = {"wte": randn(9, 130, dtype=dtype), "wpe": randn(7, 130, dtype=dtype)}
    check_op("embedding", run, reference, given)
    check_op(
        "embedding", lambda *args: run(*args)[0], lambda wte, wpe: reference(wte, wpe)[0], given
    )  # head has no gradient


class _Loss(torch.autograd.Function):
    """A head's loss that hands on a gradient of its own, as linear_cross_entropy does; `made` gets its address."""

    @staticmethod
    def forward(ctx, head, made):
        ctx.made = made
        return head.sum()

    @staticmethod
    def backward(ctx, dloss):
        dhead = dloss.expand(9, 4).contiguous()
        ctx.made.append(dhead.data_ptr())
        return dhead, None


def test_tied_needs_no_second_matrix(backend: str) -> None:
    wte, made = randn(9, 4).requires_grad_(), []
    x, head = ops.tied_embedding(torch.tensor([[2]]), wte, randn(1, 4))
    (dwte,) = torch.autograd.grad(x.sum() + _Loss.apply(head, made), wte)
    assert torch.equal(dwte, TIED) and dwte.data_ptr() == made[0]


TIED = torch.ones(9, 4).index_fill(0, torch.tensor([2]), 2.0)  # 1 from the head everywhere, 1 more of the token


@pytest.mark.parametrize("how", ("given", "view", "hook", "detached in a hook", "asked for", "retained", "both"))
def test_tied_writes_into_nothing_that_is_not_its_own(how: str) -> None:
    wte = randn(9, 4).requires_grad_()
    x, head = ops.tied_embedding(torch.tensor([[2]]), wte, randn(1, 4))
    held, loss = [], x.sum() + _Loss.apply(head, [])
    if how in ("given", "view"):
        dhead = torch.ones(9, 4) if how == "given" else torch.ones(36)
        held = [dhead]
        (dwte,) = torch.autograd.grad((x, head), wte, (torch.ones_like(x), dhead.view(9, 4)))
    elif how == "asked for":
        dwte, *held = torch.autograd.grad(loss, (wte, head))
    else:
        if "hook" in how:
            head.register_hook(lambda dhead: held.append(dhead if how == "hook" else dhead.detach()[:]))
        elif how == "retained":
            head.retain_grad()
        else:
            other = torch.zeros(9, 4, requires_grad=True) * 1
            x, head = ops.tied_embedding(torch.tensor([[2]]), wte, randn(1, 4))
            other.register_hook(held.append)
            loss = x.sum() + _Loss.apply(head + other, [])
        loss.backward()
        dwte = wte.grad
        held = [head.grad] if how == "retained" else held
    assert torch.equal(dwte, TIED)
    assert len(held) == 1 and bool((held[0] == 1).all())


def test_deterministic(backend: str) -> None:
    idx, wte, wpe = torch.randint(0, 9, (3, 301)), randn(9, 130), randn(301, 130)
    check_deterministic(lambda: with_grads(lambda wte, wpe: ops.embedding(idx, wte, wpe), wte, wpe))


def test_documents_are_deterministic(backend: str) -> None:
    idx, wte, wpe, starts = torch.randint(0, 9, (2, 77)), randn(9, 70), randn(77, 70), starts_of([7] * 11, [1] * 77)
    check_deterministic(lambda: with_grads(lambda wte, wpe: ops.embedding(idx, wte, wpe, starts=starts), wte, wpe))


def test_opcheck(backend: str) -> None:
    idx, wte, wpe = torch.randint(0, 9, (2, 3)), randn(9, 4), randn(5, 4)
    starts = starts_of((1, 2), (3,))
    opcheck(backward, randn(2, 3, 4), idx, randn(9, 4), 5, 1, starts)
    for grad in (False, True):
        opcheck(forward, idx, wte.requires_grad_(grad), wpe.requires_grad_(grad), 1, 9, starts if grad else None)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"idx": torch.tensor([[0, 9]])}, IndexError, r"idx\[0, 1\] is 9, expected ids in \[0, 9\)"),
        ({"idx": torch.tensor([[0], [-1]])}, IndexError, r"idx\[1, 0\] is -1, expected ids in \[0, 9\)"),
        ({"idx": torch.zeros(3).long()}, ValueError, r"idx has shape \(3,\), expected \(B, T\)"),
        (
            {"idx": torch.zeros(1, 3)},
            TypeError,
            "idx has dtype torch.float32 and layout torch.strided on cpu, expected torch.int64",
        ),
        ({"idx": torch.zeros(1, 6).long()}, IndexError, r"positions 0 to 5, expected them in \[0, 5\)"),
        ({"wte": torch.tensor(1.0)}, ValueError, r"wte has shape \(\), expected \(V, C\)"),
        ({"start": 3}, IndexError, r"positions 3 to 5, expected them in \[0, 5\)"),
        ({"start": -1}, IndexError, r"positions -1 to 1, expected them in \[0, 5\)"),
        ({"wpe": torch.ones(5, 3)}, ValueError, r"wpe has shape \(5, 3\), expected \(5, 4\)"),
        ({"wte": torch.ones(9, 4).half()}, TypeError, "wte has dtype torch.float16, expected torch.float32 or"),
        ({"vocab_size": 10}, ValueError, "vocab_size is 10, expected 1 to 9, the rows of wte"),
        ({"starts": torch.zeros(3).long()}, ValueError, r"starts has shape \(3,\), expected \(1, 3\)"),
        ({"starts": torch.zeros(1, 3)}, TypeError, "starts has dtype torch.float32 and layout torch.strided on cpu"),
        ({"starts": torch.tensor([[0, 0, 3]])}, ValueError, r"starts\[0, 2\] is 3, expected 0 .* to 2 \(its own col"),
        ({"starts": torch.tensor([[0, 1, 0]])}, ValueError, r"starts\[0, 2\] is 0, expected 1 \(the start before it"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    given = {"idx": torch.zeros(1, 3).long(), "wte": torch.ones(9, 4), "wpe": torch.ones(5, 4), **change}
    trained = {name: x.clone().requires_grad_() if name in ("wte", "wpe") else x for name, x in given.items()}
    for values in (given, trained):
        with pytest.raises(error, match="embedding: .*" + message):
            ops.embedding(**values)
