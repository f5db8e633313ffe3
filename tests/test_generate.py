"""Generation: the cache changes nothing, sampling follows its rules, the window slides as documented."""

from __future__ import annotations

import warnings
from collections import Counter

import pytest
import torch
from torch import Tensor

from gpt2c.config import GPT2Config
from gpt2c.generate import _nucleus, sample, window_start
from gpt2c.model import GPT2

V = 61


@pytest.fixture(scope="module")
def model() -> GPT2:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(vocab_size=V, n_positions=16, n_embd=32, n_layer=2, n_head=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)  # large, so that the greedy text varies
        model.wte.weight[V:] = 0
    return model


def make_prompt(batch: int = 3, tokens: int = 5) -> Tensor:
    return torch.randint(0, V, (batch, tokens), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def greedy_without_cache(model: GPT2, idx: Tensor, count: int) -> Tensor:
    for _ in range(count):
        start = window_start(idx.shape[1], model.config.n_positions)
        idx = torch.cat([idx, model(idx[:, start:])[0][:, -1].argmax(dim=-1, keepdim=True)], dim=1)
    return idx


@pytest.mark.parametrize("tokens", [1, 5, 15])
def test_greedy_is_the_same_without_a_cache(model, tokens):
    idx, count = make_prompt(tokens=tokens), 17 - tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # all of it fits the context
        found = model.generate(idx, count, temperature=0)
    assert torch.equal(found, greedy_without_cache(model, idx, count))
    assert torch.equal(found[:, :tokens], idx)
    assert len(set(found[:, tokens:].flatten().tolist())) > 1  # not one token over and over


@pytest.mark.parametrize("tokens", [5, 16, 17, 40])
def test_greedy_is_the_same_without_a_cache_beyond_the_context(model, tokens):
    idx = make_prompt(tokens=tokens)
    with pytest.warns(UserWarning, match="exceed the context of 16") as caught:
        found = model.generate(idx, 30, temperature=0)
    assert len(caught) == 1
    assert torch.equal(found, greedy_without_cache(model, idx, 30))


@pytest.mark.parametrize("context", [1, 2, 7, 16])
def test_window_fits_and_moves_by_half_a_context(context):
    starts = [window_start(length, context) for length in range(1, 100)]
    sizes = [length - start for length, start in zip(range(1, 100), starts, strict=True)]
    assert starts[:context] == [0] * context
    assert max(sizes) == context and min(sizes[context:]) == context // 2 + 1
    assert {b - a for a, b in zip(starts, starts[1:], strict=False)} <= {0, context - context // 2}


def test_a_context_of_one_token():
    torch.manual_seed(0)
    model = GPT2(GPT2Config(vocab_size=V, n_positions=1, n_embd=32, n_layer=1, n_head=2))
    idx = make_prompt(tokens=1)
    with pytest.warns(UserWarning, match="exceed the context of 1"):
        found = model.generate(idx, 4, temperature=0)
    assert torch.equal(found, greedy_without_cache(model, idx, 4))


@pytest.mark.filterwarnings("ignore:generate")
def test_text_continued_in_two_calls_is_the_text_of_one(model):
    idx = make_prompt()
    half = model.generate(idx, 13, temperature=0)
    assert torch.equal(model.generate(half, 15, temperature=0), model.generate(idx, 28, temperature=0))


def test_no_new_tokens_is_the_prompt(model):
    idx = make_prompt(tokens=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(model.generate(idx, 0), idx)


@pytest.mark.filterwarnings("ignore:generate")
@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 0.9, "top_k": 20, "top_p": 0.95, "seed": 7}])
def test_stream_yields_what_generate_returns(model, options):
    idx = make_prompt()
    steps = list(model.stream(idx, 20, **options))
    assert len(steps) == 20 and all(ids.shape == (3,) and ids.dtype == torch.int64 for ids in steps)
    assert torch.equal(torch.stack(steps, dim=1), model.generate(idx, 20, **options)[:, 5:])


@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_k": 3, "top_p": 0.9, "seed": 1}, {"weights": "int8"}])
def test_no_rows_give_no_rows(model, options):
    assert model.generate(make_prompt()[:0], 4, **options).shape == (0, 9)
    with pytest.warns(UserWarning, match="exceed the context"):
        assert model.generate(make_prompt()[:0], 2**40, **options).shape == (0, 5 + 2**40), "and take no time"


def test_stream_leaves_the_model_and_autograd_alone(model):
    model.train()
    for _ in model.stream(make_prompt(), 3, temperature=0):
        assert torch.is_grad_enabled() and model.training


def test_generation_never_uses_dropout():
    torch.manual_seed(0)
    model = GPT2(GPT2Config(vocab_size=V, n_positions=16, n_embd=32, n_layer=1, n_head=2, dropout=0.5))
    idx = make_prompt()
    found = model.train().generate(idx, 8, temperature=0)
    assert torch.equal(found, model.eval().generate(idx, 8, temperature=0))


def test_generated_ids_can_be_trained_on(model):
    idx = model.generate(make_prompt(), 5, seed=0)
    model(idx[:, :-1], idx[:, 1:])[1].backward()
    model.zero_grad()


class TestSampling:
    def test_same_seed_same_text(self, model):
        idx = make_prompt(batch=1).expand(4, -1)
        first = model.generate(idx, 10, seed=11)
        torch.manual_seed(99)  # another state of torch's own generator
        assert torch.equal(model.generate(idx, 10, seed=11), first)
        assert not torch.equal(model.generate(idx, 10, seed=12), first)
        assert len({tuple(row) for row in first.tolist()}) == 4  # the samples differ from each other

    def test_a_seed_leaves_torchs_generator_alone(self, model):
        torch.manual_seed(5)
        state = torch.get_rng_state()
        model.generate(make_prompt(), 5, seed=3)
        assert torch.equal(torch.get_rng_state(), state)

    def test_without_a_seed_torchs_generator_decides(self, model):
        texts = []
        for _ in range(2):
            torch.manual_seed(5)
            texts.append(model.generate(make_prompt(), 10))
        assert torch.equal(*texts)

    def frequencies(self, logits: list[float], count: int = 20000, **options) -> dict[int, float]:
        generator = torch.Generator().manual_seed(0)
        ids = sample(torch.tensor([logits]).expand(count, -1), generator=generator, **options)
        return {token: number / count for token, number in Counter(ids.tolist()).items()}

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"temperature": 1.0}, [0.1, 0.4, 0.2, 0.3]),
            ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
            ({"temperature": 1.0, "top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
            ({"temperature": 1.0, "top_k": 9}, [0.1, 0.4, 0.2, 0.3]),
            ({"temperature": 1.0, "top_p": 0.5}, [0, 4 / 7, 0, 3 / 7]),
            ({"temperature": 1.0, "top_p": 0.3}, [0, 1, 0, 0]),
            ({"temperature": 1.0, "top_p": 1.0}, [0.1, 0.4, 0.2, 0.3]),
            # top_p counts what top_k leaves: 4/9 + 3/9 >= 0.75, where 0.4 + 0.3 would need a third
            ({"temperature": 1.0, "top_k": 3, "top_p": 0.75}, [0, 4 / 7, 0, 3 / 7]),
        ],
    )
    def test_frequencies(self, options, expected):
        found = self.frequencies(torch.tensor([0.1, 0.4, 0.2, 0.3]).log().tolist(), **options)
        for token, probability in enumerate(expected):
            if probability == 0:
                assert token not in found
            else:  # five standard deviations of 20000 draws
                assert abs(found[token] - probability) <= 5 * (probability * (1 - probability) / 20000) ** 0.5

    def test_the_nucleus_is_the_smallest_that_reaches_top_p(self):
        # Four quarters, exact in binary: two reach 0.5, and of equals the first come first.
        assert self.frequencies([0.0] * 4, temperature=1.0, top_p=0.5).keys() == {0, 1}
        assert self.frequencies([0.0] * 4, temperature=1.0, top_p=0.51).keys() == {0, 1, 2}

    def test_the_nucleus_of_a_large_vocabulary(self):
        equal = torch.full((2, 4096), 2.0**-12)
        assert torch.equal(_nucleus(equal, 0.25).nonzero()[:, 1], torch.arange(1024).repeat(2))
        probabilities = (torch.randn(3, 5000) * torch.tensor([[0.1], [1.0], [5.0]])).softmax(dim=-1)
        for top_p in (0.01, 0.5, 0.99, 0.9999):
            found = _nucleus(probabilities, top_p)
            for row, kept in zip(probabilities, found, strict=True):
                ordered = row.sort(descending=True).values
                count = int((ordered.cumsum(0) - ordered < top_p).sum())
                assert torch.equal(kept.sort(descending=True).values[:count], ordered[:count])
                assert int(kept.count_nonzero()) == count

    def test_extremes_stay_sound(self):
        assert self.frequencies([1e30, 0.0, -1e30], temperature=1e-45) == {0: 1.0}
        assert self.frequencies([5.0, 4.9, 0.0], temperature=1e-6) == {0: 1.0}
        assert self.frequencies([3.0, 1.0, 2.0], temperature=1.0, top_k=1) == {0: 1.0}
        assert self.frequencies([3.0, 1.0, 2.0], temperature=1.0, top_p=1e-9) == {0: 1.0}
        assert self.frequencies([3.0, 1.0, 2.0], temperature=1.0, top_p=1e-300) == {0: 1.0}  # 0 in fp32
        assert self.frequencies([2.0, 2.0, 1.0], temperature=0) == {0: 1.0}

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_damaged_logits_are_an_error(self, bad):
        for temperature in (0, 1.0):
            with pytest.raises(ValueError, match="logits are not all finite"):
                sample(torch.tensor([[0.0, bad]]), temperature)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_new_tokens": -1}, ValueError, "generate: max_new_tokens is -1, expected at least 0"),
        ({"max_new_tokens": 1.5}, TypeError, "generate: max_new_tokens is 1.5, expected an integer"),
        (
            {"max_new_tokens": torch.ones(2, 2)},
            TypeError,
            "^generate: max_new_tokens is a Tensor, expected an integer$",
        ),
        ({"max_new_tokens": None}, TypeError, "generate: max_new_tokens is None, expected an integer"),
        ({"temperature": -0.1}, ValueError, "generate: temperature is -0.1, expected a finite number of at least 0"),
        ({"temperature": float("nan")}, ValueError, "temperature is nan, expected a finite number of at least 0"),
        ({"temperature": "hot"}, TypeError, "generate: temperature is 'hot', expected a number"),
        ({"top_k": 0}, ValueError, "generate: top_k is 0, expected at least 1"),
        ({"top_k": 2.0}, TypeError, "generate: top_k is 2.0, expected an integer"),
        ({"top_p": 0.0}, ValueError, "generate: top_p is 0.0, expected 0 < top_p <= 1"),
        ({"top_p": 1.1}, ValueError, "generate: top_p is 1.1, expected 0 < top_p <= 1"),
        ({"seed": -1}, ValueError, "generate: seed is -1, expected at least 0"),
        ({"seed": 2**64}, ValueError, "generate: seed is 18446744073709551616, expected less than"),
        ({"seed": "x"}, TypeError, "generate: seed is 'x', expected an integer"),
        ({"idx": torch.ones(1, 0, dtype=torch.int64)}, ValueError, r"idx has shape \(1, 0\)"),
        ({"idx": torch.ones(3, dtype=torch.int64)}, ValueError, r"idx has shape \(3,\), expected \(B, T\)"),
        ({"idx": torch.ones(1, 3)}, TypeError, "idx is a float32 tensor, expected an int64 tensor"),
        ({"idx": [[1]]}, TypeError, "idx is a list, expected an int64 tensor"),
        ({"idx": torch.tensor([[1, V]])}, IndexError, "idx holds the token 61, expected 0 <= token < 61"),
        ({"idx": torch.tensor([[-3, 1]])}, IndexError, "idx holds the token -3, expected 0 <= token < 61"),
    ],
)
def test_bad_arguments_are_one_sentence_at_the_call(model, options, error, message):
    with pytest.raises(error, match=message) as caught:
        model.stream(**{"idx": make_prompt(), "max_new_tokens": 3, **options})
    assert "\n" not in str(caught.value)
