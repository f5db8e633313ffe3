"""What writes the texts of `gpt2c serve`: many at a time, token by token."""

from __future__ import annotations

import asyncio
import json

import pytest
import torch

pytest.importorskip("fastapi", reason="the package fastapi is not installed")
pytest.importorskip("uvicorn", reason="the package uvicorn is not installed")
httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")

from serving import NAME, make_model, make_service, serving, wait_until  # noqa: E402

from gpt2c.sampling import Sampling  # noqa: E402
from gpt2c.serve import engine as engine_module  # noqa: E402
from gpt2c.serve.service import Order, Service  # noqa: E402
from gpt2c.serve.text import TextWriter, spelled  # noqa: E402
from gpt2c.serve.tokens import Wanted, token  # noqa: E402
from gpt2c.tokenizer import StreamDecoder, get_tokenizer  # noqa: E402


class TestEngine:
    @pytest.mark.parametrize("weights", ["int8", "bf16 model"])
    def test_other_weights(self, weights):
        service = make_service(weights="int8") if weights == "int8" else bf16_service()
        ids = torch.tensor([list(b"Once")])
        wanted = service.model.generate(ids, 12, temperature=0, weights=service.engine.weights)[0, 4:].tolist()
        assert written(service, Order([ids[0].tolist()] * 3, 12, Sampling(0)))[2] == wanted

    def test_more_texts_than_rows(self):
        service = make_service(rows=2)
        prompts = [list(b"abcdef"[: i + 1]) for i in range(6)]
        found = written(service, Order(prompts, 10, Sampling(0)))
        ids = [service.model.generate(torch.tensor([prompt]), 10, temperature=0)[0] for prompt in prompts]
        assert found == [row[len(prompt) :].tolist() for row, prompt in zip(ids, prompts, strict=True)]

    def test_long_prompts_are_read_in_pieces(self, monkeypatch):
        """While another text goes on."""
        monkeypatch.setattr(engine_module, "PIECE", 4)
        service = make_service()
        prompts = [list(range(40, 40 + n)) for n in (1, 3, 4, 5, 8, 9, 13)]
        found = written(service, Order(prompts, 6, Sampling(0)))
        ids = [service.model.generate(torch.tensor([prompt]), 6, temperature=0)[0] for prompt in prompts]
        assert found == [row[len(prompt) :].tolist() for row, prompt in zip(ids, prompts, strict=True)]

    def test_damaged_weights(self):
        service = make_service()
        with torch.no_grad():
            service.model.h[1].mlp.c_fc.weight[3, 5] = torch.nan
        with serving(service) as url:
            body = {"model": NAME, "prompt": "x"}
            answer = httpx.post(f"{url}/v1/completions", json=body)
            assert answer.status_code == 500 and "weights must be damaged" in answer.json()["error"]["message"]
            lines = httpx.post(f"{url}/v1/completions", json={**body, "stream": True}).text.split("\n\n")
            assert "weights must be damaged" in json.loads(lines[0].removeprefix("data: "))["error"]["message"]
            asked = {**body, "prompt": "xyz", "max_tokens": 0, "echo": True, "logprobs": 1}
            for at, body in (("v1/completions", asked), ("api/lens", {"ids": [1, 2]})):
                answer = httpx.post(f"{url}/{at}", json=body)
                assert answer.status_code == 500 and "weights must be damaged" in answer.json()["error"]["message"]
            lines = httpx.post(f"{url}/v1/completions", json={**asked, "stream": True}).text
            assert "weights must be damaged" in lines and "NaN" not in lines
            wait_until(lambda: service.engine.load() == (0, 0))  # the client may hear of it first

    def test_a_step_that_fails_ends_its_texts_only(self, monkeypatch):
        service = make_service()
        good, calls = service.engine._step, []

        def step(rows):
            calls.append(rows)
            if len(calls) == 3:
                raise RuntimeError("out of luck")
            return good(rows)

        monkeypatch.setattr(service.engine, "_step", step)
        with serving(service) as url:
            body = {"model": NAME, "prompt": "x"}
            answer = httpx.post(f"{url}/v1/completions", json=body)
            assert answer.status_code == 500 and "out of luck" in answer.json()["error"]["message"]
            assert httpx.post(f"{url}/v1/completions", json=body).status_code == 200


def bf16_service() -> Service:
    service = make_service()
    model = make_model(service.tokenizer.vocab_size).to(torch.bfloat16)
    return Service(NAME, model, service.tokenizer, None, engine_module.Engine(model))


def written(service: Service, order: Order) -> list[list[int]]:
    """The ids that an order's texts get."""

    async def write() -> list[list[int]]:
        answer = service.submit(order)
        service.engine.start()
        return [[token.id for token in text.tokens] for text in await answer.whole()]

    try:
        return asyncio.run(write())
    finally:
        service.engine.stop()


class TestText:
    def test_stop_strings_however_the_text_is_cut(self):
        """Bytes come one by one: nothing of a stop string is ever given, and nothing before it is lost."""
        tokenizer = get_tokenizer("bytes")
        for text, stops, wanted in [
            ("abcabd", ["abd"], "abc"),
            ("aaab", ["aab"], "a"),
            ("abc", ["c", "b"], "a"),
            ("a€b", ["€"], "a"),
            ("abab", ["abc"], "abab"),
            ("ab", [], "ab"),
            ("a\xe2"[:2], ["\ufffd\ufffd"], "aâ"),
        ]:
            writer = TextWriter(tokenizer, stops)
            given = "".join(map(writer.feed, text.encode())) + writer.finish()
            assert (given, writer.stopped) == (wanted, wanted != text), text

    def test_a_character_that_the_prompt_begins(self):
        """Prompt and text together are what their bytes are, wherever they are cut."""
        tokenizer = get_tokenizer("bytes")
        for text in ("€uro", "a€", "😀!", "é"):
            ids = list(text.encode())
            for cut in range(len(ids) + 1):
                decoder, writer = StreamDecoder(tokenizer), TextWriter(tokenizer, [], ids[:cut])
                given = "".join(map(decoder.feed, ids[:cut])) + "".join(map(writer.feed, ids[cut:]))
                assert given + writer.finish() == text

    def test_an_unfinished_character(self):
        writer = TextWriter(get_tokenizer("bytes"), ["x"])
        assert writer.feed(0xE2) == "" and writer.finish() == "\ufffd"
        assert spelled(get_tokenizer("bytes"), 0xE2) == "\\xe2" and spelled(get_tokenizer("bytes"), 65) == "A"


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.6])
def test_the_rest_stands_for_all_tokens_not_named(temperature):
    """The probabilities of the named ones at any temperature, from what the page gets, against all logits."""
    logits = 3 * torch.randn(5000)
    told = token(7, logits, Wanted(top=40, rest=True))
    low, high, counts = told.rest.low, told.rest.high, torch.tensor(told.rest.counts)
    assert int(counts.sum()) == 4960 and told.logprob == pytest.approx(float(logits.log_softmax(0)[7]), abs=1e-5)
    ids, named = zip(*told.top, strict=True)
    centres = low + (torch.arange(len(counts)) + 0.5) * (high - low) / len(counts)
    named = (torch.tensor(named) / temperature).exp()
    whole = named.sum() + (counts * (centres / temperature).exp()).sum()
    assert torch.allclose(named / whole, (logits / temperature).softmax(0)[list(ids)], rtol=0.01)
