"""What listens at torch's dispatcher: autocast, torch.func's transforms, forward mode, other kinds of tensors."""

from __future__ import annotations

import pytest
import torch
from test_arguments import IDX, _block
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jvp, vmap

import gpt2c
from gpt2c import ops

torch.manual_seed(0)
X, W, B = torch.randn(3, 4), torch.randn(4), torch.randn(4)
Q, TABLE, TARGETS = torch.randn(1, 2, 3, 4), torch.randn(5, 4), IDX[0]
SHAPES = {"qkv_weight": (4, 12), "qkv_bias": (12,), "o_weight": (4, 4), "fc_weight": (4, 16), "fc_bias": (16,)}
SHAPES["proj_weight"] = (16, 4)
WEIGHTS = ops.BlockWeights(*(torch.randn(SHAPES.get(name, (4,))) for name in ops.BlockWeights._fields))
OPS = {
    "attention": (lambda x: ops.attention(x, x, x, causal=True), Q),
    "matmul": (lambda x: ops.matmul(x, x.t()), X),
    "layernorm": (lambda x: ops.layernorm(x, W, B), X),
    "residual_layernorm": (lambda x: ops.residual_layernorm(x, x, W, B)[1], X),
    "gelu": (ops.gelu, X),
    "bias_gelu": (lambda x: ops.bias_gelu(x, B), X),
    "embedding": (lambda x: ops.embedding(IDX, x, TABLE), TABLE),
    "tied_embedding": (lambda x: ops.tied_embedding(IDX, x, TABLE)[0], TABLE),
    "cross_entropy": (lambda x: ops.cross_entropy(x, TARGETS), X),
    "linear_cross_entropy": (lambda x: ops.linear_cross_entropy(x, TABLE, TARGETS), X),
    "block": (lambda x: _block(x=x, weights=WEIGHTS)[0], torch.randn(1, 3, 4)),
    "grad_norm": (lambda x: ops.grad_norm([x]), X),
}


@pytest.mark.parametrize("name", OPS)
def test_forward_mode_is_refused(name: str) -> None:
    op, x = OPS[name]
    for run in (lambda: jvp(op, (x,), (x,)), lambda: jacfwd(op)(x), lambda: _dual(op, x)):
        for gradient in (False, True):
            with (
                torch.set_grad_enabled(gradient),
                pytest.raises(NotImplementedError, match="no forward-mode derivative"),
            ):
                run()


def _dual(op: object, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return op(forward_ad.make_dual(x, x))


DIFFERENTIABLE = [name for name in OPS if name != "grad_norm"]


def _square(y: Tensor) -> Tensor:
    return y.float().pow(2).sum()


def _gradient(op: object, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(_square(op(x)), x)[0]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_first_derivative_of_transforms(name: str) -> None:
    op, x = OPS[name]
    want = torch.stack([_gradient(op, x), _gradient(op, 2 * x)])
    transformed = grad(lambda x: _square(op(x)))
    assert torch.equal(transformed(x), want[0])
    tracked = transformed(x.clone().requires_grad_())  # for autograd around the transform, too
    assert tracked.requires_grad and torch.equal(tracked, want[0])
    each = vmap(transformed)(torch.stack([x, 2 * x]))
    torch.testing.assert_close(each, want)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_second_derivative_is_right_or_refused(name: str) -> None:
    """With a constant incoming gradient, too, where a derivative that nobody takes passes for zero."""
    op, x = OPS[name]
    for total in (torch.sum, _square):
        for second in (_penalty, _nested):
            if name == "matmul":
                want = second(lambda x: x @ x.t(), x, total)
                torch.testing.assert_close(second(op, x, total), want)
            elif "embedding" in name and total is torch.sum:  # which is linear
                assert not second(op, x, total).any()
            else:
                with pytest.raises(NotImplementedError, match="has no second derivative, expected one backward"):
                    second(op, x, total)


def _penalty(op: object, x: Tensor, total: object) -> Tensor:
    x = x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(total(op(x)), x, create_graph=True)
    return torch.autograd.grad(dx.pow(2).sum() + 0 * x.sum(), x)[0]


def _nested(op: object, x: Tensor, total: object) -> Tensor:
    return grad(lambda x: grad(lambda x: total(op(x)))(x).pow(2).sum())(x)


@pytest.mark.parametrize("name", OPS)
def test_vmap(name: str) -> None:
    op, x = OPS[name]
    assert torch.equal(vmap(op)(torch.stack([x, 2 * x])), torch.stack([op(x), op(2 * x)]))


def test_vmap_of_what_changes_its_inputs_is_refused() -> None:
    lists = [[torch.ones(2, 3)] for _ in range(4)]
    with pytest.raises(NotImplementedError, match=r"adamw: changes its arguments in place, expected no torch\.vmap"):
        vmap(lambda *each: ops.adamw_(*([t] for t in each), 1, 0.1, 0.9, 0.99, 1e-8, 0.0))(*(t for (t,) in lists))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", OPS)
def test_traced_on_one_input_and_run_on_another(name: str) -> None:
    op, x = OPS[name]
    traced = torch.jit.trace(op, (x.clone(),), check_trace=False)
    assert torch.equal(traced(2 * x), op(2 * x))


@pytest.mark.parametrize("name", OPS)
def test_negated_views(name: str) -> None:
    op, x = OPS[name]
    assert torch.equal(op(torch._neg_view(-x)), op(x))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", ("gelu", "layernorm", "attention", "block", "grad_norm"))
def test_nested_and_masked_tensors_are_refused(name: str) -> None:
    op, x = OPS[name]
    with pytest.raises(TypeError, match=r"is a nested tensor, expected an ordinary one"):
        op(torch.nested.nested_tensor([x[0], x[0]]))


LOW = {"attention", "matmul", "block"}  # whose results are of autocast's dtype


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_autocast(name: str) -> None:
    op, x = OPS[name]
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = op(x)
    want = op(x)
    assert y.dtype == (torch.bfloat16 if name in LOW else torch.float32)
    (got_dx,), (want_dx,) = (torch.autograd.grad(o.float().pow(2).sum(), x) for o in (y, want))
    assert got_dx.dtype == torch.float32
    for got, exact in ((y, want), (got_dx, want_dx)):
        assert (got.float() - exact).abs().max() <= 3e-2 * exact.abs().max().clamp_min(1)


def test_autocast_takes_inputs_of_several_dtypes() -> None:
    half = X.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.layernorm(half, W, B), ops.layernorm(half.float(), W, B))
        assert torch.equal(ops.matmul(half, X.t()), ops.matmul(half, X.t().bfloat16()))
        assert ops.linear_cross_entropy(half, TABLE, TARGETS).dtype == torch.float32


def test_zero_sizes() -> None:
    for shape in ((0, 3, 4), (2, 0, 4)):
        x = torch.zeros(shape, requires_grad=True)
        out, h2 = _block(x=x)
        assert out.shape == h2.shape == shape
        (out.sum() + h2.sum()).backward()
        assert x.grad.shape == shape


@pytest.fixture(scope="module")
def model() -> gpt2c.GPT2:
    return gpt2c.GPT2(gpt2c.GPT2Config(vocab_size=7, n_positions=8, n_embd=8, n_layer=1, n_head=2))


def test_functional_call(model: gpt2c.GPT2) -> None:
    idx = torch.randint(0, 7, (2, 5))
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    assert torch.equal(functional_call(model, dict(model.named_parameters()), (idx, idx))[1], model(idx, idx)[1])
    assert float(functional_call(model, zeros, (idx, idx))[1]) == pytest.approx(1.9459101)  # log 7


def test_gradient_of_a_functional_call(model: gpt2c.GPT2) -> None:
    idx = torch.randint(0, 7, (2, 5))
    parameters = dict(model.named_parameters())
    got = grad(lambda p: functional_call(model, p, (idx, idx))[1])(parameters)
    want = torch.autograd.grad(model(idx, idx)[1], list(parameters.values()))
    for name, exact in zip(parameters, want, strict=True):
        torch.testing.assert_close(got[name], exact, msg=name)


def test_gradient_penalty_of_the_model_is_refused(model: gpt2c.GPT2) -> None:
    idx, parameters = torch.randint(0, 7, (2, 5)), list(model.parameters())
    loss = model(idx, idx)[1]
    grads = torch.autograd.grad(loss, parameters, create_graph=True)
    with pytest.raises(NotImplementedError, match="has no second derivative"):
        (loss + sum(dp.pow(2).sum() for dp in grads)).backward()


def test_meta(model: gpt2c.GPT2) -> None:
    idx = torch.zeros(2, 5, dtype=torch.int64, device="meta")
    logits, loss = gpt2c.GPT2(model.config).to("meta")(idx, idx)
    assert loss.shape == () and loss.is_meta
    assert gpt2c.GPT2(model.config).to("meta")(idx)[0].shape == (2, 5, 7)


def test_compiled_with_dynamic_shapes(model: gpt2c.GPT2) -> None:
    compiled = torch.compile(model, dynamic=True, backend="aot_eager", fullgraph=True)
    for shape in ((2, 5), (3, 4), (1, 7)):
        idx = torch.randint(0, 7, shape)
        grads = [torch.autograd.grad(run(idx, idx)[1], list(model.parameters())) for run in (compiled, model)]
        for got, want in zip(*grads, strict=True):
            torch.testing.assert_close(got, want)
