"""The encoder-decoder beside a twin in plain PyTorch, and what its three attentions may and may not see."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2c import ops
from gpt2c.seq2seq import CrossAttention, SelfAttention, Seq2Seq, Seq2SeqConfig, add_and_norm

CONFIG = Seq2SeqConfig(vocab_size=31, n_positions=20, n_embd=24, n_head=3, n_encoder=2, n_decoder=3)
# As in test_model.py: rounding alone is about 1e-6 of a gradient's norm, a wrong mask or constant above 1e-4.
GRADIENT_TOLERANCE = 1e-5


def make_model(config: Seq2SeqConfig = CONFIG) -> Seq2Seq:
    """A model in which no parameter is at a value that would hide it."""
    torch.manual_seed(0)
    model = Seq2Seq(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


class Twin:
    """The model's formulas from its state_dict, in float64, with the score matrices written out."""

    def __init__(self, model: Seq2Seq) -> None:
        self.config = model.config
        self.p = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}

    def loss(self, source: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        logits = self.decode(target, self.encode(source)) @ self.p["wte.weight"].t()
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)

    def encode(self, source: Tensor) -> Tensor:
        x = self.p["wte.weight"][source] + self.p["wpe_source.weight"][: source.shape[1]]
        for i in range(self.config.n_encoder):
            x = x + self.self_attention(f"encoder.{i}", self.norm(x, f"encoder.{i}.ln_1"), causal=False)
            x = x + self.mlp(f"encoder.{i}", self.norm(x, f"encoder.{i}.ln_2"))
        return self.norm(x, "ln_encoder")

    def decode(self, target: Tensor, memory: Tensor) -> Tensor:
        x = self.p["wte.weight"][target] + self.p["wpe_target.weight"][: target.shape[1]]
        for i in range(self.config.n_decoder):
            x = x + self.self_attention(f"decoder.{i}", self.norm(x, f"decoder.{i}.ln_1"), causal=True)
            x = x + self.cross_attention(f"decoder.{i}.cross", self.norm(x, f"decoder.{i}.ln_2"), memory)
            x = x + self.mlp(f"decoder.{i}", self.norm(x, f"decoder.{i}.ln_3"))
        return self.norm(x, "ln_decoder")

    def self_attention(self, layer: str, x: Tensor, causal: bool) -> Tensor:
        q, k, v = self.linear(x, f"{layer}.attn.c_attn").chunk(3, dim=-1)
        return self.linear(self.attend(q, k, v, causal), f"{layer}.attn.c_proj")

    def cross_attention(self, name: str, x: Tensor, memory: Tensor) -> Tensor:
        k, v = self.linear(memory, f"{name}.c_memory").chunk(2, dim=-1)
        return self.linear(self.attend(self.linear(x, f"{name}.c_query"), k, v, False), f"{name}.c_proj")

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        outputs = []
        heads = (t.chunk(self.config.n_head, dim=-1) for t in (q, k, v))
        for q, k, v in zip(*heads, strict=True):  # noqa: B020
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            if causal:
                scores = scores + torch.full(scores.shape[-2:], -math.inf).triu(1)
            outputs.append(scores.softmax(-1) @ v)
        return torch.cat(outputs, dim=-1)

    def mlp(self, layer: str, x: Tensor) -> Tensor:
        hidden = F.gelu(self.linear(x, f"{layer}.mlp.c_fc"), approximate="tanh")
        return self.linear(hidden, f"{layer}.mlp.c_proj")

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.p[f"{name}.weight"], self.p[f"{name}.bias"])


@pytest.mark.parametrize(("source_tokens", "target_tokens"), [(1, 1), (7, 4), (4, 7), (20, 20), (1, 20)])
def test_same_loss_and_gradients_as_the_twin(source_tokens: int, target_tokens: int) -> None:
    model = make_model()
    twin = Twin(model)
    source, target, labels = (tokens(3, n, seed=i) for i, n in enumerate((source_tokens, target_tokens, target_tokens)))
    if target_tokens > 1:
        labels[0, target_tokens // 2 :] = -100
    loss, expected = model(source, target, labels), twin.loss(source, target, labels)
    loss.backward()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        wanted = twin.p[name].grad
        # A single key has the probability 1 whatever the query: a gradient of zero, but for rounding.
        allowed = GRADIENT_TOLERANCE * float(wanted.norm()) + 1e-6
        assert float((parameter.grad - wanted).norm()) <= allowed, name


def test_the_decoder_sees_no_later_target_and_all_of_the_source() -> None:
    model = make_model().eval()
    source, target = tokens(2, 6), tokens(2, 8, seed=2)
    y = model.decode(target, model.encode(source))
    changed = target.clone()
    changed[:, 5] = (changed[:, 5] + 1) % CONFIG.vocab_size
    after = model.decode(changed, model.encode(source))
    assert torch.equal(after[:, :5], y[:, :5]) and not torch.isclose(after[:, 5:], y[:, 5:]).all(-1).any()
    for i in range(6):  # each source token, the last too, changes the first output
        other = source.clone()
        other[:, i] = (other[:, i] + 1) % CONFIG.vocab_size
        assert not torch.isclose(model.decode(target, model.encode(other))[:, 0], y[:, 0]).all(-1).any()


def test_padding_at_a_targets_end_changes_nothing() -> None:
    model = make_model()
    source, target, labels = tokens(1, 5), tokens(1, 4, seed=2), tokens(1, 4, seed=3)
    padded = torch.cat([target, tokens(1, 3, seed=4)], dim=1)
    ignored = torch.cat([labels, torch.full((1, 3), -100)], dim=1)
    alone = torch.autograd.grad(model(source, target, labels), list(model.parameters()))
    together = torch.autograd.grad(model(source, padded, ignored), list(model.parameters()))
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["self", "causal", "cross"])
def test_attention_shown_is_that_of_the_op(kind: str) -> None:
    torch.manual_seed(0)
    memory = [torch.randn(2, 9, 24)] if kind == "cross" else []
    attention = CrossAttention(CONFIG, 0.2) if memory else SelfAttention(CONFIG, 0.2, causal=kind == "causal")
    x = torch.randn(2, 5, 24)
    shown = attention.probabilities(x, *memory)
    assert shown.shape == (2, 3, 5, 9 if memory else 5)
    torch.testing.assert_close(shown.sum(-1), torch.ones(2, 3, 5))
    _, _, v = attention.heads(x, *memory)
    expected = (shown @ v).transpose(1, 2).flatten(2) @ attention.c_proj.weight + attention.c_proj.bias
    torch.testing.assert_close(attention(x, *memory), expected, rtol=1e-5, atol=1e-6)


def test_attention_maps_are_of_every_layer() -> None:
    """Of a layer alone what the hooks saw of it; and a model that has been looked at computes as before."""
    model = make_model()
    source, target = tokens(2, 9), tokens(2, 5, seed=2)
    before = model.decode(target, model.encode(source))
    maps = model.attention_maps(source, target)
    shapes = [(CONFIG.n_encoder, 2, 3, 9, 9), (CONFIG.n_decoder, 2, 3, 5, 5), (CONFIG.n_decoder, 2, 3, 5, 9)]
    assert [part.shape for part in maps] == shapes
    for part in maps:
        torch.testing.assert_close(part.sum(-1), torch.ones(part.shape[:-1]))
        assert not any(torch.equal(part[0], later) for later in part[1:])
    assert not maps.target.triu(1).any()
    x = ops.embedding(source, model.wte.weight, model.wpe_source.weight)
    _, y = add_and_norm(x, None, model.encoder[0].ln_1)
    torch.testing.assert_close(maps.source[0], model.encoder[0].attn.probabilities(y))
    assert torch.equal(model.decode(target, model.encode(source)), before)


def test_greedy_takes_the_likeliest_token_at_each_step_and_stops() -> None:
    model = make_model()
    source, begin, end = tokens(4, 6), 0, 1
    targets = model.greedy(source, begin, end)
    assert 1 <= targets.shape[1] <= CONFIG.n_positions - 1
    for row in range(4):  # a row alone, from all of its text at once
        ids = targets[row].tolist()
        length = ids.index(end) + 1 if end in ids else len(ids)
        given = torch.tensor([[begin, *ids[: length - 1]]])
        y = model.decode(given, model.encode(source[row : row + 1]))
        assert model.logits(y[0]).argmax(-1).tolist() == ids[:length]
    with torch.no_grad():  # a model that always says `end`
        model.ln_decoder.weight.zero_()
        model.ln_decoder.bias.copy_(model.wte.weight[end] * 100)
    assert model.greedy(source, begin, end).tolist() == [[end]] * 4


def test_sizes_that_are_no_model() -> None:
    with pytest.raises(ValueError, match="n_embd is 30, expected a multiple of n_head"):
        Seq2SeqConfig(10, n_embd=30, n_head=4)
    with pytest.raises(ValueError, match="n_layer is 0"):
        Seq2SeqConfig(10, n_decoder=0)
    with pytest.raises(IndexError, match="positions 0 to 20"):
        make_model().encode(tokens(1, 21))
