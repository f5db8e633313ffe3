"""What the viewer shows of a model's inside, against the model and against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="the package fastapi is not installed")

from serving import make_model  # noqa: E402

from gpt2c.model import GPT2  # noqa: E402
from gpt2c.serve import view  # noqa: E402
from gpt2c.serve.tokens import Wanted  # noqa: E402
from gpt2c.serve.view import Reader, Reading  # noqa: E402

V = 70


@pytest.fixture(scope="module")
def model() -> GPT2:
    return make_model(V)


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return torch.randint(0, V, (50,), generator=torch.Generator().manual_seed(1)).tolist()


@torch.no_grad()
def test_its_last_layer_says_what_the_model_says(model, ids):
    reading = Reading(model, ids)
    expected = model(torch.tensor([ids]))[0][0]
    assert torch.allclose(reading.logits(model.config.n_layer, slice(None)), expected, atol=1e-4)
    half = make_model(V).to(torch.bfloat16)
    found = Reading(half, ids).logits(2, slice(None))
    assert torch.allclose(found, Reading(half.float(), ids).logits(2, slice(None)))


def test_attention_and_layers_are_those_of_transformers(model, ids, tmp_path: Path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    model.save_pretrained(tmp_path)
    twin = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        told = twin(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
    reading = Reading(model, ids)
    for layer, expected in enumerate(told.attentions):
        for head in range(model.config.n_head):
            found = reading.attention(layer, head)
            assert torch.allclose(found.weights, expected[0, head], atol=1e-5) and not found.earlier.any()
    for stream, expected in zip(reading.streams[:-1], told.hidden_states[:-1], strict=True):
        assert torch.allclose(stream, expected[0], atol=1e-4)
    monkeypatch.setattr(view, "MOST_SHOWN", 20)
    found = reading.attention(1, 0)
    assert torch.allclose(found.weights, told.attentions[1][0, 0, 30:, 30:], atol=1e-5)
    assert torch.allclose(found.earlier, told.attentions[1][0, 0, 30:, :30].sum(-1), atol=1e-5)
    assert found.rows == found.columns == ids[30:]


@torch.no_grad()
def test_lens(model, ids, monkeypatch):
    """The last row is what the model says; the first is the embedding by itself, through ln_f and the head."""
    monkeypatch.setattr(view, "LENS_SHOWN", 7)
    table = Reading(model, ids).lens()
    assert len(table) == 3 and {len(row) for row in table} == {7}
    expected = model(torch.tensor([ids]))[0][0, -7:].softmax(-1).topk(3)
    assert [[id for id, _ in cell] for cell in table[-1]] == expected.indices.tolist()
    assert [[p for _, p in cell] for cell in table[-1]] == [
        pytest.approx(row, abs=1e-4) for row in expected.values.tolist()
    ]
    x = model.wte.weight[ids[-1]] + model.wpe.weight[len(ids) - 1]
    y = torch.nn.functional.layer_norm(x, x.shape, model.ln_f.weight, model.ln_f.bias, 1e-5)
    first = (model.wte.weight[:V] @ y).softmax(-1)
    assert table[0][-1][0] == (int(first.argmax()), pytest.approx(float(first.max()), abs=1e-5))


@torch.no_grad()
def test_how_likely_each_token_was(model, ids):
    expected = model(torch.tensor([ids]))[0][0].log_softmax(-1)
    for positions in (range(1, 50), [7, 3, 49], []):
        tokens = Reading(model, ids).tokens(positions, Wanted(top=2))
        assert [token.id for token in tokens] == [ids[at] for at in positions]
        wanted = [float(expected[at - 1, ids[at]]) for at in positions]
        assert [token.logprob for token in tokens] == pytest.approx(wanted, abs=1e-4)
        assert [token.top[0][0] for token in tokens] == [int(expected[at - 1].argmax()) for at in positions]


def test_a_text_is_read_once(model, ids):
    reader = Reader(model)
    first = reader.read(ids)
    assert reader.read(list(ids)) is first and reader.read(ids[:-1]) is not first


def test_one_token(model):
    reading = Reading(model, [3])
    assert reading.attention(0, 0).weights.tolist() == [[1]] and len(reading.lens()) == 3
