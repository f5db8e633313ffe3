"""The model beside its plain PyTorch twin, and what must not change its answers."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from checks import starts_of
from torch import Tensor
from twin import Twin

from gpt2c import ops
from gpt2c.config import PRESETS, GPT2Config
from gpt2c.model import GPT2
from gpt2c.optim import AdamW

CONFIG = GPT2Config(vocab_size=97, n_positions=40, n_embd=48, n_layer=3, n_head=3)
V = CONFIG.vocab_size

# Two correct fp32 evaluations differ by rounding alone: 6e-8 per operation, a few hundred roundings in a row (3 layers,
# sums of up to 192 terms) which add up like a random walk, so about 1e-6 of a gradient's norm. Measured: two
# formulations in plain PyTorch lie within 8e-7 of float64. A wrong constant, mask or epsilon shows above 1e-4.
GRADIENT_TOLERANCE = 1e-5
# Logits of size about 1: the same rounding, on single elements instead of norms.
LOGIT_TOLERANCE = 2e-5


def make_model(config: GPT2Config = CONFIG, seed: int = 0) -> GPT2:
    """A model in which no parameter is at a value that would hide it (zero biases, unit gains)."""
    torch.manual_seed(seed)
    model = GPT2(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        model.wte.weight[config.vocab_size :] = 0
    return model


def make_batch(batch: int = 4, tokens: int = 24, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(0, V, (batch, tokens + 1), generator=generator)
    return data[:, :-1], data[:, 1:]  # not contiguous, as training slices its batches


def loss_and_gradients(
    model: torch.nn.Module, idx: Tensor, targets: Tensor, starts: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(idx, targets)[1] if starts is None else model(idx, targets, starts)[1]
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        rows = gradient.shape[0]  # the twin has no padding
        error = (found[name][:rows] - gradient).norm() / gradient.norm()
        assert error <= tolerance, f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("tokens", [1, 7, 24, 40])
def test_same_logits_loss_and_gradients_as_the_twin(tokens):
    model = make_model()
    twin = Twin.of(model)
    idx, targets = make_batch(tokens=tokens)
    if tokens > 1:
        targets = targets.clone()
        targets[0, : tokens // 2] = -100
    logits, no_loss = model(idx)
    assert no_loss is None and logits.shape == (4, tokens, V)
    torch.testing.assert_close(logits, twin(idx)[0], rtol=LOGIT_TOLERANCE, atol=LOGIT_TOLERANCE)
    loss, gradients = loss_and_gradients(model, idx, targets)
    expected_loss, expected = loss_and_gradients(twin, idx, targets)
    assert model(idx, targets)[0] is None and loss.shape == () and loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    assert_same_gradients(gradients, expected, GRADIENT_TOLERANCE)


def test_the_epsilon_is_the_configurations():
    """As large as the variance, so that another one shows."""
    model = make_model(replace(CONFIG, layer_norm_epsilon=0.5))
    idx, targets = make_batch()
    loss, gradients = loss_and_gradients(model, idx, targets)
    expected_loss, expected = loss_and_gradients(Twin.of(model), idx, targets)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    assert_same_gradients(gradients, expected, GRADIENT_TOLERANCE)


def test_gradients_through_the_logits_are_the_twins():
    model = make_model()
    twin = Twin.of(model)
    idx, _ = make_batch()
    direction = torch.randn(4, 24, V, generator=torch.Generator().manual_seed(5))
    for module in (model, twin):
        (module(idx)[0] * direction).sum().backward()
    expected = {name: p.grad for name, p in twin.named_parameters()}
    assert_same_gradients({name: p.grad for name, p in model.named_parameters()}, expected, GRADIENT_TOLERANCE)
    assert not model.wte.weight.grad[V:].any()


def train_together(steps: int) -> tuple[list[float], list[float]]:
    """The losses of the model and of its twin over as many AdamW steps on one batch."""
    torch.manual_seed(0)
    model = GPT2(CONFIG)
    twin = Twin.of(model)
    optimizers = [
        AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
        torch.optim.AdamW(twin.parameters(), lr=2e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
    ]
    curves: tuple[list[float], list[float]] = [], []
    idx, targets = make_batch()
    for _ in range(steps):
        for module, optimizer, curve in zip((model, twin), optimizers, curves, strict=True):
            optimizer.zero_grad()
            loss = module(idx, targets)[1]
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
    assert not model.wte.weight[V:].any()
    return curves


def assert_stay_together(curves: tuple[list[float], list[float]]) -> None:
    # Adam divides by the gradient's own size, so an element whose gradient is rounding noise moves by up to lr and the
    # runs part faster than rounding alone. Measured here: two plain PyTorch formulations part by 1e-6 to 1e-5; eps 1e-6
    # for 1e-8 parts by 8e-4, no weight decay by 3e-2, beta2 0.999 for 0.95 by 4e-2.
    assert max(abs(a - b) for a, b in zip(*curves, strict=True)) < 1e-4


def test_fifty_training_steps_stay_together():
    curves = train_together(50)
    assert curves[0][-1] < 0.5 * curves[0][0]  # it learned, so the comparison means something
    assert_stay_together(curves)


def test_training_steps_on_every_backend(backend: str) -> None:
    curves = train_together(5)
    assert curves[0][-1] < curves[0][0] - 0.1
    assert_stay_together(curves)


def test_bf16_follows_the_parameters():
    model = make_model()
    idx, targets = make_batch()
    reference, loss = model(idx)[0], model(idx, targets)[1]
    model.to(torch.bfloat16)
    logits = model(idx)[0]
    assert logits.dtype == torch.bfloat16
    # bf16 keeps 8 bits: 4e-3 per rounding of values about 1, some ten roundings deep in the residual stream.
    assert (logits.float() - reference).norm() / reference.norm() < 0.03
    low, gradients = loss_and_gradients(model, idx, targets)
    assert low.dtype == torch.float32 and abs(low - loss) < 0.02
    assert all(g.dtype == torch.bfloat16 and g.isfinite().all() for g in gradients.values())


def test_initialisation_is_gpt2s():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=1000, n_positions=256, n_embd=128, n_layer=8, n_head=4)
    for name, p in GPT2(config).named_parameters():
        if name == "wte.weight":
            assert p.shape == (1024, 128) and not p[1000:].any()
            p = p[:1000]
        if name.endswith("bias"):
            assert not p.any(), name
        elif "ln_" in name:
            assert (p == 1).all(), name
        else:
            std = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02  # 1/sqrt(2L) = 1/4
            assert abs(p.std() / std - 1) < 0.03 and abs(p.mean()) < 0.03 * std, name


def test_padding_of_the_vocabulary_changes_nothing():
    model = make_model()
    idx, targets = make_batch()
    logits, (loss, gradients) = model(idx)[0], loss_and_gradients(model, idx, targets)
    assert model.wte.weight.shape[0] == 128 and logits.shape[-1] == V
    assert not gradients["wte.weight"][V:].any()
    with torch.no_grad():
        model.wte.weight[V:] = 100.0
    assert torch.equal(model(idx)[0], logits)
    after, gradients = loss_and_gradients(model, idx, targets)
    assert after == loss and not gradients["wte.weight"][V:].any()


def test_parameter_count_of_gpt2():
    counts = {}
    for name in PRESETS:
        with torch.device("meta"):
            model = GPT2(GPT2Config.preset(name))
        counts[name] = model.num_parameters()
    assert counts["gpt2"] == 124_439_808
    assert counts == {
        name: 50257 * c + 1024 * c + layers * (12 * c * c + 13 * c) + 2 * c for name, (layers, _, c) in PRESETS.items()
    }


def test_a_later_token_does_not_change_earlier_logits():
    model = make_model()
    idx, _ = make_batch()
    changed = idx.clone()
    changed[:, 15] = (changed[:, 15] + 1) % V
    before, after = model(idx)[0], model(changed)[0]
    assert torch.equal(before[:, :15], after[:, :15])
    assert not torch.isclose(before[:, 15:], after[:, 15:]).all(dim=-1).any()


def test_tokens_after_the_end_do_not_change_logits():
    model = make_model()
    idx, _ = make_batch(tokens=40)
    # Another T may round its matrix products in another order.
    torch.testing.assert_close(model(idx[:, :17])[0], model(idx)[0][:, :17], rtol=LOGIT_TOLERANCE, atol=LOGIT_TOLERANCE)


DOCUMENTS = ((1, 7, 31, 1), (40,), (20, 20))


def alone(model: torch.nn.Module, idx: Tensor, targets: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What DOCUMENTS have, one after another: the mean loss, whose gradients are left, and the logits."""
    model.zero_grad()
    total, logits = torch.zeros(()), []
    for row, lengths in enumerate(DOCUMENTS):
        begin = 0
        for length in lengths:
            at = (slice(row, row + 1), slice(begin, begin + length))
            logits.append(model(idx[at])[0][0].detach())
            loss = model(idx[at], targets[at])[1] * length / idx.numel()
            loss.backward()
            total += loss.detach()
            begin += length
    return total, logits


def test_documents_of_a_row_do_not_see_each_other():
    model = make_model()
    idx, targets = make_batch(batch=3, tokens=40)
    starts = starts_of(*DOCUMENTS)
    twin = Twin.of(model)
    expected_loss, expected_logits = alone(twin, idx, targets)
    expected = {name: p.grad.clone() for name, p in twin.named_parameters()}
    for model.recompute in (False, True):
        loss, gradients = loss_and_gradients(model, idx, targets, starts)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
        assert_same_gradients(gradients, expected, GRADIENT_TOLERANCE)
    logits = model(idx, starts=starts)[0].flatten(0, 1).split([len(x) for x in expected_logits])
    for got, want in zip(logits, expected_logits, strict=True):
        torch.testing.assert_close(got, want, rtol=LOGIT_TOLERANCE, atol=LOGIT_TOLERANCE)
    changed = idx.clone()
    changed[0, 8:39] = (changed[0, 8:39] + 1) % V  # the document of 31 tokens
    kept = torch.ones_like(idx, dtype=torch.bool)
    kept[0, 8:39] = False
    before, after = model(idx, starts=starts)[0], model(changed, starts=starts)[0]
    assert torch.equal(before[kept], after[kept]) and not torch.equal(before[~kept], after[~kept])


def test_documents_under_autocast():
    model = make_model()
    idx, targets = make_batch(batch=3, tokens=40)
    starts = starts_of(*DOCUMENTS)
    loss, gradients = loss_and_gradients(model, idx, targets, starts)
    with torch.autocast("cpu", torch.bfloat16):
        low, found = loss_and_gradients(model, idx, targets, starts)
        assert model(idx, starts=starts)[0].dtype == torch.bfloat16
    assert abs(low - loss) < 0.02
    # bf16 keeps 8 bits, see test_bf16_follows_the_parameters; another mask changes gradients by a third and more.
    assert_same_gradients(found, gradients, 0.1)


def test_rows_of_a_batch_do_not_see_each_other():
    model = make_model()
    idx, _ = make_batch(batch=5)
    together = model(idx)[0]
    for row in range(5):
        torch.testing.assert_close(
            model(idx[row : row + 1])[0][0], together[row], rtol=LOGIT_TOLERANCE, atol=LOGIT_TOLERANCE
        )
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(model(idx[order])[0], together[order], rtol=LOGIT_TOLERANCE, atol=LOGIT_TOLERANCE)


def test_accumulated_gradients_are_the_big_batchs():
    model = make_model()
    idx, targets = make_batch(batch=6)
    loss, expected = loss_and_gradients(model, idx, targets)
    model.zero_grad()
    total = torch.zeros(())
    for part in range(3):
        rows = slice(2 * part, 2 * part + 2)
        share = model(idx[rows], targets[rows])[1] / 3
        share.backward()
        total += share.detach()
    torch.testing.assert_close(total, loss, rtol=1e-6, atol=0)
    found = {name: p.grad for name, p in model.named_parameters()}
    assert_same_gradients(found, expected, GRADIENT_TOLERANCE)


def test_two_runs_are_bit_identical():
    model = make_model()
    idx, targets = make_batch()
    first, second = (loss_and_gradients(model, idx, targets) for _ in range(2))
    assert first[0] == second[0]
    for name, gradient in first[1].items():
        assert torch.equal(gradient, second[1][name]), name


class TestDropout:
    def losses(self, model: GPT2, seed: int, count: int = 2) -> list[float]:
        torch.manual_seed(seed)
        return [model(*make_batch())[1].item() for _ in range(count)]

    def test_torchs_seed_decides_it(self):
        model = make_model(replace(CONFIG, dropout=0.2))
        first = self.losses(model, seed=3)
        assert first[0] != first[1]
        assert self.losses(model, seed=3) == first
        assert self.losses(model, seed=4)[0] != first[0]

    def test_eval_mode_is_the_model_without_it(self):
        model = make_model(replace(CONFIG, dropout=0.2)).eval()
        plain = make_model()
        assert self.losses(model, seed=3) == self.losses(plain, seed=4)

    def test_it_is_in_all_three_places(self, monkeypatch):
        model = make_model(replace(CONFIG, dropout=0.25))
        seeds, rates = [], []
        block, plain_dropout = ops.block, F.dropout

        def spy_block(x, h, weights, n_head, eps, dropout_p, seed, recompute, starts):
            rates.append(dropout_p)
            seeds.append(seed.item())
            return block(x, h, weights, n_head, eps, dropout_p, seed, recompute, starts)

        def spy_dropout(x, p):
            rates.append(p)
            return plain_dropout(x, p)

        monkeypatch.setattr(ops, "block", spy_block)
        monkeypatch.setattr(F, "dropout", spy_dropout)
        self.losses(model, seed=0, count=1)
        assert rates == [0.25] * (1 + CONFIG.n_layer)
        assert len(set(seeds)) == CONFIG.n_layer

    def test_its_expectation_is_the_model_without_it(self):
        model = make_model(replace(CONFIG, n_layer=1, dropout=0.01))
        idx, _ = make_batch(batch=1)
        with torch.no_grad():
            expected = model.eval()(idx)[0]
            found = model.train()(idx.expand(2000, -1))[0].mean(dim=0)
        # 2000 rows leave 1/45 of one row's deviation (about 0.1 of the logits at p = 0.01).
        assert (found - expected).norm() / expected.norm() < 0.02


def test_compiled_equals_eager():
    config = GPT2Config(vocab_size=33, n_positions=16, n_embd=32, n_layer=1, n_head=2)
    model = make_model(config)
    idx = torch.randint(0, 33, (2, 9), generator=torch.Generator().manual_seed(2))
    targets = idx.roll(-1, dims=1)
    compiled = torch.compile(model, fullgraph=True)
    loss, expected = loss_and_gradients(model, idx, targets)
    model.zero_grad()
    found = compiled(idx, targets)[1]
    found.backward()
    torch.testing.assert_close(found.detach(), loss, rtol=1e-6, atol=0)
    assert_same_gradients({n: p.grad for n, p in model.named_parameters()}, expected, GRADIENT_TOLERANCE)


def test_compiled_graphs_of_other_versions_are_not_taken():
    # The cache on disk, which knows an operator by its name, has this tag in its keys: a function of the ops' sources.
    assert re.search(r"gpt2c-[0-9a-f]{16}", torch.compiler.config.cache_key_tag)


def test_compiled_logits_have_no_graph_break():
    model = make_model()
    idx, _ = make_batch()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")  # Inductor's C++ is the test above
    with torch.no_grad():
        torch.testing.assert_close(compiled(idx)[0], model(idx)[0], rtol=LOGIT_TOLERANCE, atol=LOGIT_TOLERANCE)


def test_compiled_with_dropout_has_no_graph_break():
    config = GPT2Config(vocab_size=33, n_positions=16, n_embd=32, n_layer=1, n_head=2, dropout=0.1)
    compiled = torch.compile(make_model(config), fullgraph=True, backend="aot_eager")
    idx = torch.zeros(2, 9, dtype=torch.int64)
    loss = compiled(idx, idx)[1]
    loss.backward()
    assert loss.isfinite()


def test_compiled_documents_have_no_graph_break():
    model = make_model()
    idx, targets = make_batch(batch=3, tokens=40)
    starts = starts_of(*DOCUMENTS)
    loss, expected = loss_and_gradients(model, idx, targets, starts)
    model.zero_grad()
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(idx, targets, starts)[1]
    found.backward()
    torch.testing.assert_close(found.detach(), loss, rtol=1e-6, atol=0)
    assert_same_gradients({n: p.grad for n, p in model.named_parameters()}, expected, GRADIENT_TOLERANCE)


@pytest.mark.parametrize(
    ("idx", "targets", "error", "message"),
    [
        ([[1, 2]], None, TypeError, "GPT2: idx is a list, expected an int64 tensor"),
        (torch.ones(1, 2), None, TypeError, "GPT2: idx is a float32 tensor, expected an int64 tensor"),
        (torch.ones(2, dtype=torch.int64), None, ValueError, r"GPT2: idx has shape \(2,\), expected \(B, T\)"),
        (torch.ones(1, 0, dtype=torch.int64), None, ValueError, r"GPT2: idx has shape \(1, 0\), expected \(B, T\)"),
        (torch.ones(1, 41, dtype=torch.int64), None, ValueError, r"shape \(1, 41\), expected .* 1 <= T <= 40"),
        (torch.tensor([[1, V]]), None, IndexError, r"embedding: idx\[0, 1\] is 97, expected ids in \[0, 97\)"),
        (torch.tensor([[1, -1]]), None, IndexError, r"embedding: idx\[0, 1\] is -1, expected ids in \[0, 97\)"),
        (torch.tensor([[1, 2]]), torch.tensor([1, 2]), ValueError, r"targets has shape \(2,\), expected \(1, 2\)"),
        (torch.tensor([[1, 2]]), torch.ones(1, 2), TypeError, "targets is a float32 tensor, expected an int64"),
        (torch.tensor([[1, 2]]), torch.tensor([[1, V]]), IndexError, "97"),
        (torch.ones(1, 2, dtype=torch.int64, device="meta"), None, ValueError, "idx is on meta, expected cpu"),
        (torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.int64, device="meta"), ValueError, "targets is on meta"),
    ],
)
def test_bad_input_is_one_sentence(idx, targets, error, message):
    with pytest.raises(error, match=message) as caught:
        make_model()(idx, targets)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("starts", "error", "message"),
    [
        ([[0, 0]], TypeError, "GPT2: starts is a list, expected an int64 tensor"),
        (torch.zeros(1, 2), TypeError, "GPT2: starts is a float32 tensor, expected an int64 tensor"),
        (torch.zeros(1, 3).long(), ValueError, r"GPT2: starts has shape \(1, 3\), expected \(1, 2\) as idx"),
        (torch.zeros(1, 2, device="meta").long(), ValueError, "GPT2: starts is on meta, expected cpu as idx"),
        (torch.tensor([[0, 2]]), ValueError, r"starts\[0, 1\] is 2, expected 0 \(the start before it\) to 1"),
    ],
)
def test_bad_starts_are_one_sentence(starts, error, message):
    with pytest.raises(error, match=message) as caught:
        make_model()(torch.tensor([[1, 2]]), starts=starts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"n_head": 5}, ValueError, "n_embd is 768, expected a multiple of n_head (5)"),
        ({"n_head": 2}, ValueError, "n_embd / n_head is 384, expected at most 256"),
        ({"n_layer": 0}, ValueError, "n_layer is 0, expected at least 1"),
        ({"vocab_size": 2.5}, TypeError, "vocab_size is 2.5, expected an integer"),
        ({"n_positions": True}, TypeError, "n_positions is True, expected an integer"),
        ({"dropout": 1.0}, ValueError, "dropout is 1.0, expected 0 <= dropout < 1"),
        ({"dropout": "0"}, TypeError, "dropout is '0', expected a number"),
        ({"layer_norm_epsilon": float("nan")}, ValueError, "layer_norm_epsilon is nan, expected a finite number"),
        ({"layer_norm_epsilon": 0}, ValueError, "layer_norm_epsilon is 0, expected more than 0"),
    ],
)
def test_bad_config_is_one_sentence(changes, error, message):
    with pytest.raises(error) as caught:
        GPT2Config(**changes)
    assert str(caught.value) == message


def test_presets():
    assert GPT2Config.preset("gpt2") == GPT2Config()
    assert GPT2Config().padded_vocab_size == 50304 and GPT2Config(vocab_size=256).padded_vocab_size == 256
    xl = GPT2Config.preset("gpt2-xl", n_layer=2)
    assert (xl.n_layer, xl.n_head, xl.n_embd, xl.head_dim) == (2, 25, 1600, 64)
    with pytest.raises(ValueError, match="preset is 'gpt3', expected one of gpt2, gpt2-medium, gpt2-large, gpt2-xl"):
        GPT2Config.preset("gpt3")


def test_recomputing_changes_no_gradient():
    model = make_model()
    idx, targets = make_batch()
    grads = []
    for model.recompute in (False, True):
        model.zero_grad()
        model(idx, targets)[1].backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)
