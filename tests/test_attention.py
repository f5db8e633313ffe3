import math

import pytest
import torch
from checks import (
    DTYPES,
    HALF_DTYPES,
    assert_close,
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
from gpt2c.ops.attention import dropout_mask
from gpt2c.ops.philox import philox_reference

forward, backward = torch.ops.gpt2c.attention_forward.default, torch.ops.gpt2c.attention_backward.default
SEED = torch.tensor([0x0123456789ABCDEF])
# Lengths of the documents of two rows: single tokens, one less and one more than a tile, and one that fills its row.
DOCUMENTS = ((1, 7, 65, 1, 1, 63, 65), (203,))


def qkv(
    B: int, H: int, Tq: int, Tk: int, D: int, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> dict[str, Tensor]:
    shapes = {"q": (B, H, Tq, D), "k": (B, H, Tk, D), "v": (B, H, Tk, D)}
    return {name: randn(*shape, dtype=dtype, scale=scale) for name, shape in shapes.items()}


def check(given: dict[str, Tensor], **settings: object) -> None:
    # With one key, in all or in each document, or equal keys, dq and dk are zero by cancellation of terms of size 1.
    one_key = given["k"].shape[2] == 1 or "starts" in settings
    floor = 1.0 if one_key or bool((given["k"] == given["k"].flatten()[:1]).all()) else 0.0
    check_op(
        "attention",
        lambda q, k, v: ops.attention(q, k, v, **settings),
        lambda q, k, v: ops.attention_reference(q, k, v, **settings),
        given,
        floor=floor,
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("T", [1, 7, 47, 48, 49, 63, 64, 65, 130])
def test_self(backend: str, T: int, causal: bool) -> None:
    check(qkv(2, 3, T, T, 16), causal=causal)


@pytest.mark.parametrize("causal", [False, True])
def test_long(backend: str, causal: bool) -> None:
    check(qkv(1, 1, 1023, 1023, 8), causal=causal)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("Tq", "Tk"), [(1, 7), (7, 1), (1, 64), (1, 65), (49, 65), (65, 49), (3, 200), (200, 3), (50, 51)]
)
def test_cross(backend: str, Tq: int, Tk: int, causal: bool) -> None:
    # Causal with Tq > Tk: the first queries see no key and give zeros.
    check(qkv(2, 2, Tq, Tk, 12), causal=causal)


@pytest.mark.parametrize("D", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 64, 65, 96, 128, 255, 256])
def test_head_dim(backend: str, D: int) -> None:
    check(qkv(1, 2, 20, 70, D), causal=True)


@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("D", [5, 16, 64])
@pytest.mark.parametrize("causal", [False, True])
def test_half(backend: str, causal: bool, D: int, dtype: torch.dtype) -> None:
    check(qkv(2, 2, 50, 70, D, dtype), causal=causal)


@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("D", [8, 64, 72, 128])
def test_half_tiles(backend: str, causal: bool, D: int, dtype: torch.dtype) -> None:
    # Three and more tiles of 64 in both directions, and the last ones not full.
    check(qkv(1, 2, 200, 200, D, dtype), causal=causal)


@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("Tq", "Tk"), [(3, 200), (200, 3), (65, 129), (129, 65), (64, 64), (1, 65)])
def test_half_cross(backend: str, Tq: int, Tk: int, causal: bool, dtype: torch.dtype) -> None:
    check(qkv(2, 1, Tq, Tk, 64, dtype), causal=causal)


@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("causal", [False, True])
def test_half_dropout(backend: str, causal: bool, D: int, dtype: torch.dtype) -> None:
    check(qkv(1, 2, 130, 150, D, dtype), causal=causal, dropout_p=0.3, seed=SEED)


@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_half_magnitudes(backend: str, scale: float, dtype: torch.dtype) -> None:
    # Scores of 1e6 next to fp16's largest number, 65504. In the backward do v must fit into fp16, so v grows no more.
    given = qkv(1, 2, 130, 70, 64, dtype)
    given["q"] *= scale
    given["k"] *= scale
    check(given, scale=scale**-2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [5, 64, 128, 256])
@pytest.mark.parametrize("Tk", [127, 128, 129, 700])
def test_one_query(backend: str, Tk: int, D: int, dtype: torch.dtype) -> None:
    # Keys in one piece, in one full one and in several, each with a kernel of its own on a GPU.
    check(qkv(1, 2, 1, Tk, D, dtype), causal=True)


def test_what_is_kept_is_scaled(backend: str) -> None:
    """With one key, what is kept of its weight, 1, is 1 / (1 - 0.75), so that the mean stays."""
    out = ops.attention(*(ones(4, 8, 64, 8), ones(4, 8, 1, 8), ones(4, 8, 1, 8)), dropout_p=0.75, seed=SEED)
    assert set(out.unique().tolist()) == {0.0, 4.0} and 0.8 < float(out.mean()) < 1.2


def test_one_query_dropout(backend: str) -> None:
    check(qkv(1, 2, 1, 300, 64), dropout_p=0.3, seed=SEED)


@pytest.mark.parametrize("shape", [(0, 2, 5, 5), (2, 0, 5, 5), (2, 2, 0, 5), (2, 2, 5, 0), (2, 2, 0, 0)])
def test_empty(backend: str, shape: tuple[int, int, int, int]) -> None:
    given = {name: t.requires_grad_() for name, t in qkv(*shape, 8).items()}
    o = ops.attention(**given)
    assert o.shape == given["q"].shape and not o.any()
    for grad, x in zip(torch.autograd.grad(o.sum(), given.values()), given.values(), strict=True):
        assert grad.shape == x.shape and not grad.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_qkv_split(backend: str, dtype: torch.dtype) -> None:
    # As the model has it: three views of one (B, T, 3 C) tensor.
    B, T, H, D = 2, 50, 3, 16
    packed = randn(B, T, 3 * H * D, dtype=dtype)
    parts = packed.split(H * D, dim=2)
    given = {n: t.view(B, T, H, D).transpose(1, 2) for n, t in zip("qkv", parts, strict=True)}
    o = ops.attention(**given)
    assert o.transpose(1, 2).is_contiguous()
    check(given, causal=True)


def test_non_contiguous(backend: str) -> None:
    given = {name: strided(t) for name, t in qkv(2, 3, 20, 21, 9).items()}
    assert given["q"].stride(-1) != 1
    check(given)


def test_expanded_keys(backend: str) -> None:
    # One head of keys for all queries' heads: stride 0.
    given = qkv(2, 3, 20, 21, 8)
    given["k"] = given["k"][:, :1].expand(2, 3, 21, 8)
    check(given)


def test_strided_gradient(backend: str) -> None:
    q, k, v = (t.requires_grad_() for t in qkv(1, 2, 20, 20, 8).values())
    do = randn(1, 2, 20, 8)
    expected = torch.autograd.grad(ops.attention(q, k, v), (q, k, v), do)
    for got, want in zip(torch.autograd.grad(ops.attention(q, k, v), (q, k, v), strided(do)), expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_magnitudes(backend: str, scale: float) -> None:
    # Integers, so that even scores of 1e8 are exact in fp32 and the softmax (one-hot, or shared by equals) is defined.
    given = {n: t.mul(4).round().clamp(-3, 3).add(0.0) for n, t in qkv(1, 2, 40, 70, 16).items()}
    given["q"] = given["q"] * (scale if scale > 1 else 1)
    given["v"] = given["v"] * scale
    check(given, causal=True, scale=1.0 if scale > 1 else scale)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_keys(backend: str, value: float) -> None:
    given = qkv(1, 2, 50, 70, 16)
    given["q"].fill_(value), given["k"].fill_(value)
    check(given, scale=1.0)


def test_equal_large_scores(backend: str) -> None:
    # Equal keys share the probability evenly, however large the scores: at 1.6e9 fp32's logsumexp would lose log 70.
    q, k, v = (t.requires_grad_() for t in qkv(1, 2, 50, 70, 16).values())
    with torch.no_grad():
        q.fill_(1e4), k.fill_(1e4)
    o, do = ops.attention(q, k, v, scale=1.0), randn(1, 2, 50, 16)
    (dv,) = torch.autograd.grad(o, v, do)
    assert_close("attention", "o", o, v.double().mean(2, keepdim=True).expand_as(o), v.dtype)
    assert_close("attention", "dv", dv, do.double().sum(2, keepdim=True).expand_as(dv) / 70, v.dtype)


def test_scale(backend: str) -> None:
    check(qkv(1, 2, 10, 12, 8), scale=0.3)
    check(qkv(1, 2, 10, 12, 8), scale=-0.3)
    q, k, v = qkv(1, 2, 10, 12, 8).values()
    assert torch.equal(ops.attention(q, k, v), ops.attention(q, k, v, scale=1 / math.sqrt(8)))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dropout_p", [0.1, 0.9])
def test_dropout(backend: str, dropout_p: float, causal: bool) -> None:
    check(qkv(2, 2, 50, 71, 8), causal=causal, dropout_p=dropout_p, seed=SEED)


def test_dropout_depends_on_the_seed_alone(backend: str) -> None:
    q, k, v = qkv(1, 2, 50, 70, 8).values()

    def run(seed: int) -> Tensor:
        return ops.attention(q, k, v, dropout_p=0.5, seed=torch.tensor([seed]))

    assert torch.equal(run(5), run(5))
    assert not torch.equal(run(5), run(6))
    assert not torch.equal(run(5), run(5 + 2**32))  # both halves of the seed count
    assert torch.isfinite(run(-1)).all()


def test_dropout_mask_statistics() -> None:
    mask = dropout_mask(SEED, 0.3, 2, 4, 200, 200) > 0
    assert mask.double().mean() == pytest.approx(0.7, abs=3e-3)  # 3 standard deviations of 320,000 draws are 2.4e-3
    for dim in (0, 1, 2, 3):  # neighbours in every direction are independent
        a, b = mask.narrow(dim, 0, mask.shape[dim] - 1), mask.narrow(dim, 1, mask.shape[dim] - 1)
        assert (a & b).double().mean() == pytest.approx(0.49, abs=6e-3)


def test_philox_known_answers() -> None:
    # The known-answer vectors published with the generator (Random123, philox4x32 with 10 rounds).
    ones = torch.tensor([0xFFFFFFFF])
    zero = torch.tensor([0])
    words = [int(w) for w in philox_reference(0, (zero, zero, zero, zero))]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    words = [int(w) for w in philox_reference(2**64 - 1, (ones, ones, ones, ones))]
    assert words == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_finite_differences(backend: str) -> None:
    for settings in ({}, {"causal": True}, {"dropout_p": 0.5, "seed": SEED}):
        check_finite_differences(lambda q, k, v, s=settings: ops.attention(q, k, v, **s), *qkv(1, 2, 5, 6, 4).values())


def test_double_use(backend: str) -> None:
    _, k, v = qkv(1, 2, 9, 11, 8).values()
    check_double_use(
        lambda q: ops.attention(q, k, v),
        lambda q: ops.attention_reference(q, k.double(), v.double()),
        "attention",
        randn(1, 2, 9, 8),
    )


@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
def test_deterministic(backend: str, dropout_p: float) -> None:
    given = qkv(2, 3, 100, 130, 16).values()
    run = lambda q, k, v: ops.attention(q, k, v, causal=True, dropout_p=dropout_p, seed=SEED)  # noqa: E731
    check_deterministic(lambda: with_grads(run, *given))


def test_documents_are_deterministic(backend: str) -> None:
    given, starts = qkv(2, 1, 203, 203, 16).values(), starts_of(*DOCUMENTS)
    check_deterministic(lambda: with_grads(lambda *qkv: ops.attention(*qkv, causal=True, starts=starts), *given))


def test_padding_does_not_matter(backend: str) -> None:
    # Causal: what comes after a query, however large (but finite), has no influence on it.
    q, k, v = qkv(1, 2, 70, 70, 8).values()
    expected = ops.attention(q, k, v, causal=True)[:, :, :50]
    k[:, :, 50:], v[:, :, 50:] = 1e15, -1e15
    assert torch.equal(ops.attention(q, k, v, causal=True)[:, :, :50], expected)


@pytest.mark.parametrize(("D", "dropout_p"), [(5, 0.0), (16, 0.3)])
def test_documents(backend: str, D: int, dropout_p: float) -> None:
    check(qkv(2, 1, 203, 203, D), causal=True, starts=starts_of(*DOCUMENTS), dropout_p=dropout_p, seed=SEED)


@pytest.mark.parametrize("dtype", HALF_DTYPES)
@pytest.mark.parametrize(("D", "dropout_p"), [(5, 0.0), (64, 0.0), (64, 0.3), (128, 0.0)])
def test_half_documents(backend: str, D: int, dropout_p: float, dtype: torch.dtype) -> None:
    given = qkv(2, 1, 203, 203, D, dtype)
    check(given, causal=True, starts=starts_of(*DOCUMENTS), dropout_p=dropout_p, seed=SEED)


@pytest.mark.parametrize("lengths", [(1,), (7,), (1, 1, 1), (48, 1, 47), (64, 64, 2), (3, 300, 1), (128, 128)])
def test_lengths_of_documents(backend: str, lengths: tuple[int, ...]) -> None:
    T = sum(lengths)
    check(qkv(1, 2, T, T, 8), causal=True, starts=starts_of(lengths))


@pytest.mark.parametrize("dtype", DTYPES)
def test_windows(backend: str, dtype: torch.dtype) -> None:
    # Any starts that do not fall: here windows of up to 50 keys, then random ones.
    windows = (torch.arange(150) - 49).clamp_min(0)
    anything = torch.minimum(torch.randint(0, 150, (150,)).sort().values, torch.arange(150))
    check(qkv(2, 1, 150, 150, 64, dtype), causal=True, starts=torch.stack([windows, anything]))


def test_documents_are_as_if_alone(backend: str) -> None:
    lengths = DOCUMENTS[0]
    given = list(qkv(1, 2, 203, 203, 16).values())
    do = randn(1, 2, 203, 16)

    def run(at: slice, starts: Tensor | None) -> list[Tensor]:
        leaves = [t[:, :, at].clone().requires_grad_() for t in given]
        o = ops.attention(*leaves, causal=True, starts=starts)
        return [o, *torch.autograd.grad(o, leaves, do[:, :, at])]

    packed, begin = run(slice(None), starts_of(lengths)), 0
    for length in lengths:
        at = slice(begin, begin + length)
        for name, got, alone in zip(("o", "dq", "dk", "dv"), packed, run(at, None), strict=True):
            assert_close("attention", name, got[:, :, at], alone, torch.float32, floor=1.0)
        begin += length


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [(64, 66, 70), (1, 127, 2)])
def test_documents_do_not_leak(backend: str, lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    # However large the tokens of other documents are, no bit of a document's results and gradients changes.
    huge = 6e4 if dtype == torch.float16 else 1e15
    T, starts = sum(lengths), starts_of(lengths)
    given = [*qkv(1, 1, T, T, 64, dtype).values(), randn(1, 1, T, 64, dtype=dtype)]

    def run(q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        o = ops.attention(*leaves, causal=True, starts=starts)
        return [o, *torch.autograd.grad(o, leaves, do)]

    expected = run(*given)
    for begin in starts.unique():
        own = (starts[0] == begin).view(T, 1)
        poisoned = [torch.where(own, t, huge) for t in given]
        for name, got, want in zip(("o", "dq", "dk", "dv"), run(*poisoned), expected, strict=True):
            assert torch.equal(got[:, :, own[:, 0]], want[:, :, own[:, 0]]), f"{name} of the document at {int(begin)}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_other_documents_tiles_are_skipped(backend: str, dtype: torch.dtype) -> None:
    # What lies whole tiles away in another document is not even read: a nan there does not show.
    starts = starts_of((140, 180))
    q, k, v, do = (randn(1, 1, 320, 64, dtype=dtype) for _ in range(4))

    def run(q: Tensor, k: Tensor, v: Tensor, do: Tensor) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        o = ops.attention(*leaves, causal=True, starts=starts)
        return [o, *torch.autograd.grad(o, leaves, do)]

    def with_nan(x: Tensor, at: slice) -> Tensor:
        x = x.clone()
        x[:, :, at] = torch.nan
        return x

    expected = run(q, k, v, do)
    early, late = slice(0, 128), slice(192, 320)
    o, dq, _, _ = run(q, with_nan(k, early), with_nan(v, early), do)
    _, _, dk, dv = run(with_nan(q, late), k, v, with_nan(do, late))
    for got, want in zip((o, dq), expected[:2], strict=True):
        assert torch.equal(got[:, :, 256:], want[:, :, 256:])
    for got, want in zip((dk, dv), expected[2:], strict=True):
        assert torch.equal(got[:, :, early], want[:, :, early])


def test_starts_of_any_strides(backend: str) -> None:
    q, k, v = qkv(2, 2, 30, 30, 8).values()
    row = starts_of((7, 23))
    expected = ops.attention(q, k, v, causal=True, starts=row.repeat(2, 1))
    gaps = row.repeat(2, 1).repeat_interleave(2, dim=1)[:, ::2]
    for starts in (row.expand(2, 30), gaps, row.repeat(2, 1).t().contiguous().t()):
        assert torch.equal(ops.attention(q, k, v, causal=True, starts=starts), expected)


def test_one_document_is_causal_attention(backend: str) -> None:
    given = qkv(2, 2, 130, 130, 16).values()
    for got, want in zip(
        with_grads(lambda *qkv: ops.attention(*qkv, causal=True, starts=torch.zeros(2, 130).long()), *given),
        with_grads(lambda *qkv: ops.attention(*qkv, causal=True), *given),
        strict=True,
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_is_seen(backend: str, bad: float) -> None:
    given = qkv(1, 2, 50, 70, 8)
    for name, at in (("q", 3), ("k", 60), ("v", 60)):
        changed = given[name].clone()
        changed[0, 1, at, 5] = bad
        o = ops.attention(**{**given, name: changed})
        rows = o[0, 1, 3] if name == "q" else o[0, 1]
        column = rows[..., 5] if name == "v" else rows  # of v only that column, of k and q all
        assert not torch.isfinite(column).any() or (name == "k" and bad == torch.inf), name
        assert torch.isfinite(o[0, 0]).all()


def test_output_can_be_changed_in_place(backend: str) -> None:
    q, k, v = (t.requires_grad_() for t in qkv(1, 2, 5, 6, 4).values())
    o = ops.attention(q, k, v) * 1
    o.mul_(2)
    assert not ops.attention(q, k, v)._is_view()


def test_one_query_at_a_time(backend: str) -> None:
    # What a KV cache does: the last query alone against all keys so far.
    q, k, v = qkv(1, 2, 60, 60, 16).values()
    whole = ops.attention(q, k, v, causal=True)
    for t in range(60):
        one = ops.attention(q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1], causal=True)
        assert torch.allclose(one[:, :, 0], whole[:, :, t], rtol=0, atol=2e-6)


def test_logsumexp(backend: str) -> None:
    q, k, v = qkv(1, 2, 50, 70, 16).values()
    _, lse = forward(q, k, v, False, 0.25, 0.0, None, None)
    expected = torch.logsumexp(q.double() @ k.double().transpose(-1, -2) * 0.25, -1)
    assert lse.dtype == torch.float64 and torch.allclose(lse, expected, rtol=0, atol=1e-5)


def test_opcheck(backend: str) -> None:
    q, k, v = qkv(1, 2, 5, 6, 4).values()
    starts = starts_of((2, 3))
    o, lse = forward(q, q, q, True, 0.5, 0.0, None, starts)
    opcheck(backward, o, q, q, q, o, lse, True, 0.5, 0.0, None, starts)
    opcheck(backward, o, q, k, v, o, lse, False, 0.5, 0.5, SEED, None)
    for grad in (False, True):
        q, k, v = (t.requires_grad_(grad) for t in (q, k, v))
        opcheck(forward, q, q, q, True, 0.5, 0.0, None, starts)
        opcheck(forward, q, k, v, False, 0.5, 0.5, SEED, None)


def ones(*shape: int, **settings: object) -> Tensor:
    return torch.ones(shape, **settings)


STARTS = torch.zeros(2, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": ones(2, 5, 8)}, ValueError, r"attention: q has shape \(2, 5, 8\), expected \(B, H, Tq, D\)"),
        ({"k": ones(2, 2, 5, 9)}, ValueError, r"attention: k has shape \(2, 2, 5, 9\), expected \(2, 2, 5, 8\)"),
        ({"v": ones(2, 2, 6, 8)}, ValueError, r"attention: v has shape \(2, 2, 6, 8\), expected \(2, 2, 5, 8\)"),
        ({"q": ones(2, 2, 5, 8).double()}, TypeError, "q has dtype torch.float64, expected torch.float32 or torch.bfl"),
        (
            {n: ones(2, 2, 5, 8).half() for n in "qkv"},
            TypeError,
            r"attention: q has dtype torch.float16, .* \(torch.float16 runs on CUDA only\)",
        ),
        ({"v": ones(2, 2, 5, 8).bfloat16()}, TypeError, "v has dtype torch.bfloat16, expected torch.float32 like q"),
        ({"k": ones(2, 2, 5, 8, device="meta")}, ValueError, "attention: k is on meta, expected cpu"),
        ({n: ones(1, 1, 2, 257) for n in "qkv"}, ValueError, "the head dimension of q is 257, expected 1 to 256"),
        ({n: ones(1, 1, 2, 0) for n in "qkv"}, ValueError, "the head dimension of q is 0, expected 1 to 256"),
        ({"q": torch.tensor(1.0)}, ValueError, r"q has shape \(\), expected \(B, H, Tq, D\)"),
        ({"q": ones(2, 2, 5, 8).to_mkldnn()}, TypeError, "q has the layout torch._mkldnn, expected torch.strided"),
        ({"scale": torch.inf}, ValueError, "scale is inf, expected a finite number"),
        ({"scale": torch.nan}, ValueError, "scale is nan, expected a finite number"),
        ({"dropout_p": 1.0, "seed": SEED}, ValueError, r"dropout_p is 1.0, expected \[0, 1\)"),
        ({"dropout_p": -0.1}, ValueError, r"dropout_p is -0.1, expected \[0, 1\)"),
        ({"dropout_p": 0.1}, ValueError, "dropout_p is 0.1 but seed is None"),
        ({"dropout_p": 0.1, "seed": ones(1)}, TypeError, "seed has dtype torch.float32"),
        ({"dropout_p": 0.1, "seed": SEED.repeat(2)}, ValueError, r"seed has shape \(2,\), expected one element"),
        (
            {"starts": STARTS, "causal": False},
            ValueError,
            "attention: starts with causal False, 5 queries and 5 keys, expected causal True and as many keys as que",
        ),
        ({"starts": STARTS, "q": ones(2, 2, 4, 8)}, ValueError, "starts with causal True, 4 queries and 5 keys"),
        ({"starts": STARTS.int()}, TypeError, "attention: starts has dtype torch.int32 .*, expected torch.int64"),
        ({"starts": STARTS.to("meta")}, TypeError, "starts has dtype torch.int64 .* on meta, expected .* on cpu"),
        ({"starts": STARTS[:1]}, ValueError, r"attention: starts has shape \(1, 5\), expected \(2, 5\)"),
        ({"starts": STARTS + 1}, ValueError, r"starts\[0, 0\] is 1, expected 0 \(the start before it\) to 0 \(its own"),
        ({"starts": STARTS - 1}, ValueError, r"attention: starts\[0, 0\] is -1, expected 0 "),
        ({"starts": torch.tensor([[0, 0, 2, 1, 1], [0] * 5])}, ValueError, r"starts\[0, 3\] is 1, expected 2 .* to 3"),
        ({"starts": torch.tensor([[0] * 5, [0, 0, 0, 4, 4]])}, ValueError, r"starts\[1, 3\] is 4, expected 0 .* to 3"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.attention(**{n: ones(2, 2, 5, 8) for n in "qkv"} | {"causal": True} | change)
