"""Modules that only hold parameters: what would need them to be called is refused, what works on parameters works."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from test_model import make_batch, make_model
from torch import nn
from torch.nn.utils import parametrizations, prune

from gpt2c.model import Linear
from gpt2c.seq2seq import Seq2Seq, Seq2SeqConfig

HOOKS = [
    "register_forward_pre_hook",
    "register_forward_hook",
    "register_full_backward_pre_hook",
    "register_full_backward_hook",
    "register_backward_hook",
]


@pytest.mark.parametrize("register", HOOKS)
@pytest.mark.parametrize("name", ["wte", "h.0", "h.0.attn", "h.1.attn.c_attn", "h.2.mlp", "h.2.ln_2", "ln_f"])
def test_a_hook_that_would_never_be_called(name, register):
    module = make_model().get_submodule(name)
    with pytest.raises(TypeError, match="^[A-Za-z]+: a hook on this module would never be called"):
        getattr(module, register)(print)


def test_pruning_needs_one():
    with pytest.raises(KeyError) as error:  # by torch, which cannot put back what it has changed before the refusal
        prune.l1_unstructured(make_model().h[0].mlp.c_fc, "weight", 0.5)
    assert "would never be called" in str(error.value.__context__)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("wte", nn.Embedding(97, 48)),
        ("ln_f", nn.LayerNorm(48, eps=0.1)),
        ("h.0.ln_1", nn.Identity()),
        ("h.0.attn", nn.MultiheadAttention(48, 3)),
        ("h.0.attn.c_proj", nn.Linear(48, 48)),  # the weight's other layout
    ],
)
def test_another_module_in_its_place(name, other):
    model, (idx, _) = make_model(), make_batch()
    before, (path, _, last) = model(idx)[0], name.rpartition(".")
    with pytest.raises(TypeError, match=f": {last} cannot be a torch.nn.*, which would never be called"):
        setattr(model.get_submodule(path), last, other)
    assert torch.equal(model(idx)[0], before)


def test_an_encoder_decoder_too():
    model = Seq2Seq(Seq2SeqConfig(vocab_size=9, n_positions=8, n_embd=8, n_encoder=1, n_decoder=1, n_head=2))
    with pytest.raises(TypeError, match="c_proj cannot be a"):
        model.decoder[0].attn.c_proj = nn.Linear(8, 8)


def test_what_works():
    """One's own kind of Linear, a parametrization, hooks on parameters and the model, a module beside the model's."""

    class Halved(Linear):
        def __init__(self, base: Linear) -> None:
            nn.Module.__init__(self)
            self.base, self.bias = base.weight, base.bias

        @property
        def weight(self) -> torch.Tensor:
            return self.base / 2

    model, (idx, targets) = make_model(), make_batch()
    expected = copy.deepcopy(model)
    with torch.no_grad():
        expected.h[0].mlp.c_fc.weight /= 2
    model.h[0].mlp.c_fc = Halved(model.h[0].mlp.c_fc)
    model.value = nn.Linear(48, 1)
    parametrizations.weight_norm(model.h[1].mlp.c_fc, "weight")
    seen = []
    model.register_forward_hook(lambda *_: seen.append("model"))
    model.h[1].attn.c_attn.weight.register_hook(lambda _: seen.append("weight"))
    loss = model(idx, targets)[1]
    loss.backward()
    assert seen == ["model", "weight"]
    assert torch.allclose(loss, expected(idx, targets)[1], atol=1e-6)


def test_a_traced_model_follows_its_input():
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = make_model().eval()

        def forward(self, idx: torch.Tensor) -> torch.Tensor:
            return self.model(idx)[0]

    logits = Logits()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, of every shape that Python looks at
        traced = torch.jit.trace(logits, make_batch(2, 8)[0])
    for other in (make_batch(2, 8, seed=5)[0], make_batch(3, 13, seed=6)[0]):
        assert torch.equal(traced(other), logits(other))
