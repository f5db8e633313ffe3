"""`gpt2c serve`: the API as OpenAI's own client sees it, batching, limits, who may ask, and how it ends."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="the package fastapi is not installed")
pytest.importorskip("uvicorn", reason="the package uvicorn is not installed")
openai = pytest.importorskip("openai", reason="the package openai is not installed")

import httpx  # noqa: E402, comes with openai
from serving import NAME, make_model, make_service, serving, wait_until  # noqa: E402

from gpt2c.cli import main  # noqa: E402
from gpt2c.sampling import Sampling  # noqa: E402
from gpt2c.serve import engine as engine_module  # noqa: E402
from gpt2c.serve import pages  # noqa: E402
from gpt2c.serve.app import listen  # noqa: E402
from gpt2c.serve.errors import ApiError  # noqa: E402
from gpt2c.serve.service import Order, Service  # noqa: E402
from gpt2c.serve.text import TextWriter, spelled  # noqa: E402
from gpt2c.serve.tokens import Wanted, token  # noqa: E402
from gpt2c.tokenizer import decode, get_tokenizer  # noqa: E402

MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def service() -> Service:
    torch.set_num_threads(1)
    return make_service()


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with serving(service) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def expected(service: Service, prompt: str, count: int, temperature: float = 0, seed: int | None = None) -> str:
    """What the model writes after the prompt by itself, up to an end-of-text token."""
    ids = torch.tensor([service.encode(prompt)])
    found = service.model.generate(ids, count, temperature, seed=seed)[0, ids.shape[1] :].tolist()
    end = service.tokenizer.end_of_text
    return decode(service.tokenizer, found[: found.index(end)] if end in found else found)


class TestOpenAI:
    def test_models(self, client):
        assert [model.id for model in client.models.list()] == [NAME]
        assert client.models.retrieve(NAME).owned_by == "gpt2c"

    def test_completion(self, client, service):
        answer = client.completions.create(model=NAME, prompt="Once", max_tokens=20, temperature=0)
        assert answer.choices[0].text == expected(service, "Once", 20) and answer.choices[0].finish_reason == "length"
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (4, 20, 24)

    def test_its_length_without_a_word(self, client):
        assert client.completions.create(model=NAME, prompt="Once", temperature=0).usage.completion_tokens == 16

    def test_ids_lists_and_several_texts(self, client, service):
        """A seed gives the text that `gpt2c sample` writes with it, and the next text the next seed."""
        answer = client.completions.create(
            model=NAME, prompt=["one", "two"], max_tokens=9, n=2, seed=5, temperature=0.8
        )
        wanted = [expected(service, word, 9, 0.8, 5 + i) for i, word in enumerate(("one", "one", "two", "two"))]
        assert [choice.text for choice in answer.choices] == wanted
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        ids = client.completions.create(model=NAME, prompt=list(b"one"), max_tokens=9, temperature=0)
        assert ids.choices[0].text == expected(service, "one", 9)

    def test_streaming(self, client, service):
        options = {"model": NAME, "prompt": "Once", "max_tokens": 40, "temperature": 0, "n": 2}
        whole = client.completions.create(**options)
        chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
        for choice in whole.choices:
            parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
            assert "".join(part.text for part in parts) == choice.text
            assert [part.finish_reason for part in parts if part.finish_reason] == ["length"]
        assert chunks[-1].usage == whole.usage and not chunks[-1].choices

    def test_stop_strings_and_echo(self, client, service):
        text = expected(service, "Once", 40)
        stop = text[10:12]
        answer = client.completions.create(
            model=NAME, prompt="Once", max_tokens=40, temperature=0, stop=stop, echo=True
        ).choices[0]
        assert answer.text == "Once" + text[: text.index(stop)] and answer.finish_reason == "stop"

    def test_logprobs(self, client, service):
        answer = client.completions.create(model=NAME, prompt="Once", max_tokens=8, seed=1, logprobs=3).choices[0]
        told, ids = answer.logprobs, service.encode("Once")
        for spelling, logprob, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
            logprobs = service.model(torch.tensor([ids]))[0][0, -1].detach().log_softmax(0)
            id = next(i for i in range(len(logprobs)) if spelled(service.tokenizer, i) == spelling)
            assert logprob == pytest.approx(float(logprobs[id]), abs=1e-4)
            assert sorted(top.values()) == pytest.approx(sorted(logprobs.topk(3).values.tolist()), abs=1e-4)
            ids.append(id)
        assert told.text_offset[0] == 0 and len(told.text_offset) == 8

    def test_chat(self, client, service):
        options = {"model": NAME, "messages": MESSAGES, "max_tokens": 30, "temperature": 0}
        answer = client.chat.completions.create(**options, logprobs=True, top_logprobs=2).choices[0]
        prompt = torch.from_numpy(service.template.prompt(MESSAGES))[None]
        ids = service.model.generate(prompt, 30, temperature=0)[0, prompt.shape[1] :].tolist()
        assert answer.message.role == "assistant" and answer.message.content == decode(service.tokenizer, ids)
        assert [t.bytes for t in answer.logprobs.content] == [list(service.tokenizer.decode_bytes([i])) for i in ids]
        assert all(t.top_logprobs[0].logprob == pytest.approx(t.logprob) for t in answer.logprobs.content)
        chunks = list(client.chat.completions.create(**options, stream=True))
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == answer.message.content

    def test_a_reply_ends_with_its_token(self, client, service, monkeypatch):
        """The end is neither text nor told; without a length a reply may fill the context."""
        prompt = torch.from_numpy(service.template.prompt(MESSAGES))[None]
        ids = service.model.generate(prompt, 20, temperature=0)[0, prompt.shape[1] :].tolist()
        end = next(i for i in range(1, 20) if ids[i] not in ids[:i])
        monkeypatch.setattr(Service, "chat_ends", lambda self: frozenset({ids[end]}))
        answer = client.chat.completions.create(model=NAME, messages=MESSAGES, temperature=0, logprobs=True)
        assert answer.choices[0].message.content == decode(service.tokenizer, ids[:end])
        assert answer.choices[0].finish_reason == "stop" and len(answer.choices[0].logprobs.content) == end
        monkeypatch.setattr(Service, "chat_ends", lambda self: frozenset())
        full = client.chat.completions.create(model=NAME, messages=MESSAGES, temperature=0)
        assert full.usage.total_tokens == service.context and full.choices[0].finish_reason == "length"

    def test_end_of_text_ends(self, client, service, monkeypatch):
        text = expected(service, "Once", 20)
        end = next(i for i in range(1, 20) if text[i] not in text[:i])
        monkeypatch.setattr(type(service.tokenizer.base), "end_of_text", ord(text[end]))
        monkeypatch.setattr(service.tokenizer, "end_of_text", ord(text[end]))
        answer = client.completions.create(model=NAME, prompt="Once", max_tokens=20, temperature=0)
        assert answer.choices[0].text == text[:end] and answer.choices[0].finish_reason == "stop"

    @pytest.mark.parametrize(
        "changes, param, code",
        [
            ({"model": "gpt-4"}, "model", "model_not_found"),
            ({"temperature": 2.5}, "temperature", None),
            ({"max_tokens": 0}, "max_tokens", None),
            ({"max_tokens": 300}, "max_tokens", "context_length_exceeded"),
            ({"prompt": "x" * 256}, "prompt", "context_length_exceeded"),
            ({"prompt": [1, 300]}, "prompt", None),
            ({"prompt": [1, "x"]}, "prompt", None),
            ({"n": 17}, "n", None),
            ({"prompt": ["x"] * 9, "n": 2}, "n", None),
            ({"stop": ["a"] * 5}, "stop", None),
            ({"logprobs": 2, "echo": True}, "echo", None),
            ({"stream_options": {"include_usage": True}}, "stream_options", None),
            ({"frequency_penalty": 1.0}, "frequency_penalty", None),
            ({"extra_body": {"top_q": 1}}, "top_q", "unsupported_parameter"),
        ],
    )
    def test_mistakes(self, client, changes, param, code):
        with pytest.raises(openai.APIStatusError) as caught:
            client.completions.create(**{"model": NAME, "prompt": "Once", **changes})
        error = caught.value
        assert isinstance(error, openai.NotFoundError if code == "model_not_found" else openai.BadRequestError)
        assert (error.type, error.param, error.code) == ("invalid_request_error", param, code), error.message

    def test_alternatives_of_no_logprobs(self, client):
        with pytest.raises(openai.BadRequestError, match="top_logprobs needs logprobs: true"):
            client.chat.completions.create(model=NAME, messages=MESSAGES, top_logprobs=2)

    def test_wrong_roles(self, client):
        with pytest.raises(openai.BadRequestError, match="message 1 has the role 'assistant', expected 'system' or"):
            client.chat.completions.create(model=NAME, messages=[{"role": "assistant", "content": "x"}])

    def test_a_model_that_cannot_chat(self):
        with serving(make_service(chat=False)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
            with pytest.raises(openai.BadRequestError, match="has not learned to chat"):
                client.chat.completions.create(model=NAME, messages=MESSAGES)


class TestEngine:
    def test_together_as_alone(self, client, service):
        """Prompts of many lengths, begun at different times: each gets the text that it gets by itself."""
        prompts = ["abcdefghij"[:n] * m for n, m in ((1, 1), (3, 1), (7, 5), (10, 12), (9, 2), (2, 30), (5, 5))]
        ask = lambda prompt: client.completions.create(  # noqa: E731
            model=NAME, prompt=prompt, max_tokens=100, temperature=0
        )
        with ThreadPoolExecutor(len(prompts)) as threads:
            answers = list(threads.map(ask, prompts))
        assert [answer.choices[0].text for answer in answers] == [expected(service, text, 100) for text in prompts]

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


class TestLimits:
    def test_a_full_queue(self):
        """Of one row and one place: nothing runs before the engine is started."""
        service = make_service(rows=1, queue=1)
        body = {"model": NAME, "prompt": "x"}
        with serving(service, started=False) as url, ThreadPoolExecutor(2) as threads:
            first = [threads.submit(httpx.post, f"{url}/v1/completions", json=body) for _ in range(2)]
            wait_until(lambda: service.engine.load() == (0, 2))
            with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
                with pytest.raises(openai.RateLimitError) as caught:
                    client.completions.create(**body)
            assert caught.value.code == "rate_limit_exceeded"
            service.engine.start()
            assert [answer.result().status_code for answer in first] == [200, 200]

    def test_a_request_of_several_texts_is_taken_whole_or_not(self):
        service = make_service(rows=1, queue=1)

        async def submit() -> None:
            with pytest.raises(ApiError, match="as many requests as it takes"):
                service.submit(Order([[1]] * 3, 5))
            assert service.engine.load() == (0, 0)

        asyncio.run(submit())

    @pytest.mark.parametrize("stream", [True, False])
    def test_a_client_that_goes_frees_its_place(self, monkeypatch, stream):
        """Also one whose text waits: with one row, texts of 4000 tokens at 10 ms each."""
        service = make_service(context=4096, rows=1)
        good = service.engine._step
        monkeypatch.setattr(service.engine, "_step", lambda rows: (time.sleep(0.01), good(rows))[1])
        body = {"model": NAME, "prompt": "x", "max_tokens": 4000, "stream": stream}

        async def ask_and_go(client: httpx.AsyncClient) -> None:
            async with client.stream("POST", "/v1/completions", json=body):
                await asyncio.sleep(60)

        async def scene(url: str) -> None:
            async with httpx.AsyncClient(base_url=url) as client:
                asking = [asyncio.create_task(ask_and_go(client)) for _ in range(3)]
                while service.engine.load() != (1, 2):
                    await asyncio.sleep(0.01)
                for task in asking:
                    task.cancel()
                await asyncio.gather(*asking, return_exceptions=True)

        with serving(service) as url:
            asyncio.run(scene(url))
            wait_until(lambda: service.engine.load() == (0, 0))
            assert httpx.post(f"{url}/v1/completions", json={**body, "max_tokens": 2, "stream": False}).is_success

    def test_bodies(self):
        at = "/v1/completions"
        with serving(make_service(), most_bytes=200) as url, httpx.Client(base_url=url) as http:
            for content in (b"x" * 201, iter([b"x" * 150, b"x" * 150])):  # announced, and in parts
                answer = http.post(at, content=content, headers={"content-type": "application/json"})
                assert answer.status_code == 413 and "more than 200 bytes" in answer.json()["error"]["message"]
            answer = http.post(at, content=b'{"model": "tiny", "prompt": "x"}')
            assert answer.status_code == 415 and "application/json" in answer.json()["error"]["message"]
            half = b'{"model": "x", "prompt": "x", "n": "\\ud800"}'  # of a character, which no UTF-8 can tell
            for content, words in (
                (b"{", "not JSON"),
                (b"[]", "not a JSON object"),
                (b"{}", "model: field required"),
                (half, 'n: input should be a valid integer, found "\\ud800"'),
            ):
                answer = http.post(at, content=content, headers={"content-type": "application/json"})
                assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text
            assert http.get(at).json()["error"]["message"] == "GET /v1/completions: method not allowed"
            assert http.get("/nothing").status_code == 404

    def test_who_may_ask(self, url):
        with httpx.Client(base_url=url) as http:
            self.check_who_may_ask(http)

    def check_who_may_ask(self, http):
        port = http.base_url.port
        for host in ("127.0.0.1", f"127.0.0.1:{port}", "localhost", f"LOCALHOST:{port}", "[::1]", f"[::1]:{port}"):
            own = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
            assert http.get("/v1/models", headers=own).status_code == 200, host
        foreign = [
            {"host": "evil.example"},
            {"host": f"evil.example:{port}"},
            {"host": "127.0.0.1.evil.example"},
            {"host": ""},
            {"origin": "https://evil.example"},
            {"origin": "null"},
            {"origin": f"https://127.0.0.1:{port}"},
            {"origin": "http://127.0.0.1:1"},
            {"origin": f"http://localhost:{port}"},
            {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
            {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"},
        ]
        for headers in foreign:
            answer = http.post("/v1/completions", json={"model": NAME, "prompt": "x"}, headers=headers)
            assert answer.status_code == 403 and answer.json()["error"]["type"] == "invalid_request_error", headers
            assert "access-control-allow-origin" not in answer.headers
        link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
        assert http.get("/", headers=link).status_code == 200


class TestPage:
    """What the page asks for; the page itself is in test_serve_page.py."""

    @torch.no_grad()
    def test_tokens_that_come_too_fast_are_told_about_later(self, url, service, monkeypatch):
        monkeypatch.setattr(pages, "STREAMED", dataclasses.replace(pages.WANTED, pause=60))
        with httpx.Client(base_url=url) as http:
            answer = http.post("/api/write", json={"text": "Once", "length": 9, "temperature": 0})
            events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n")[:-1]]
            tokens = [token for event in events[1:] for token in event["tokens"]]
            assert len(tokens) == 9 and ["logprob" in token for token in tokens] == [True] + [False] * 8
            ids = [*b"Once", *(token["id"] for token in tokens)]
            later = http.post("/api/read", json={"ids": ids, "positions": [12, 4]}).json()["tokens"]
            assert [token["id"] for token in later] == [ids[12], ids[4]]
            assert later[1]["top"] == [[*one[:2], pytest.approx(one[2], abs=1e-3)] for one in tokens[0]["top"]]
            logprobs = service.model(torch.tensor([ids]))[0][0, 11].log_softmax(-1)
            assert later[0]["logprob"] == pytest.approx(float(logprobs[ids[12]]), abs=1e-4)

    def test_a_text_ends_where_the_context_does(self, url, service):
        """And of one that has ended, nothing is written."""
        for ids, length, wanted in [
            ([1] * 250, 100, (6, "length")),
            ([1] * 256, 100, (0, "length")),
            ([1, service.template.end], 100, (0, "stop")),
            ([1, service.tokenizer.end_of_text], 100, (0, "stop")),
        ]:
            answer = httpx.post(f"{url}/api/write", json={"ids": ids, "length": length, "temperature": 0})
            prompt, *events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n")[:-1]]
            tokens = [token for event in events for token in event["tokens"]]
            assert [token["id"] for token in prompt["prompt"]] == ids
            assert (len(tokens), events[-1]["finish"]) == wanted

    def test_only_so_many_looks_wait(self):
        """One that waits, whose client goes, makes room for another."""
        service = make_service(queue=1)

        async def scene(url: str) -> None:
            async with httpx.AsyncClient(base_url=url) as http:
                waiting = asyncio.create_task(http.post("/api/lens", json={"ids": [1]}))
                while not service.engine._calls:
                    await asyncio.sleep(0.01)
                assert (await http.post("/api/lens", json={"ids": [2]})).status_code == 429
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                while not service.engine._calls[0][0].cancelled():
                    await asyncio.sleep(0.01)
                waiting = asyncio.create_task(http.post("/api/lens", json={"ids": [3]}))
                while service.engine._calls[0][0].cancelled():
                    await asyncio.sleep(0.01)
                service.engine.start()
                assert (await waiting).status_code == 200

        with serving(service, started=False) as url:
            asyncio.run(scene(url))

    def test_mistakes(self, url):
        for path, body, words in [
            ("write", {}, "found nothing, expected one of text, ids and messages"),
            ("write", {"text": "x", "ids": [1]}, "found text and ids"),
            ("write", {"ids": [9999]}, "token 9999"),
            ("read", {"ids": [1, 2], "positions": [2]}, "positions: expected numbers below 2, found 2"),
            ("read", {"ids": [1, 2], "positions": [0]}, "positions"),
            ("read", {"ids": [1] * 300, "positions": []}, "ids has 300 tokens, expected at most 256"),
            ("attention", {"ids": [1], "kind": "x", "layer": 0, "head": 0}, "there is no head 0 of layer 0 of 'x'"),
            ("lens", {"ids": []}, "ids"),
        ]:
            answer = httpx.post(f"{url}/api/{path}", json=body)
            assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text


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


class TestCommand:
    def test_port_in_use(self, capsys):
        with listen(0) as other:
            assert main(["serve", "no-model", "--port", str(other.getsockname()[1])]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "is in use by another program: give another one with --port" in error

    @pytest.mark.parametrize("port", ["-1", "70000"])
    def test_no_port(self, capsys, port):
        assert main(["serve", "no-model", f"--port={port}"]) == 2
        assert f"cannot listen on port {port} of 127.0.0.1" in capsys.readouterr().err

    def test_no_model(self, capsys):
        assert main(["serve", "no/such/model", "--port=0"]) == 2
        assert capsys.readouterr().err.count("\n") == 1

    def test_without_the_packages(self, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "gpt2c.serve.app", None)
        assert main(["serve", "no-model"]) == 2
        assert 'needs the packages fastapi and uvicorn: pip install "gpt2c[serve]"' in capsys.readouterr().err

    def test_ctrl_c_ends_it(self, tmp_path: Path, capsys):
        """In the middle of a text, whose client is told; nothing else is printed."""
        make_model(257, context=30_000).save_pretrained(tmp_path / "run")
        with listen(0) as free:
            port = free.getsockname()[1]

        def ask() -> list[str]:
            body = {"model": "run", "prompt": "x", "max_tokens": 20_000, "temperature": 0, "stream": True}
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
                try:
                    wait_until(lambda: answers(http))
                    with http.stream("POST", "/v1/completions", json=body) as answer:
                        lines = answer.iter_lines()
                        next(lines)
                        os.kill(os.getpid(), signal.SIGINT)
                        return list(lines)
                except BaseException:
                    os.kill(os.getpid(), signal.SIGINT)
                    raise

        with ThreadPoolExecutor(1) as threads:
            asking = threads.submit(ask)
            assert main(["serve", str(tmp_path / "run"), f"--port={port}"]) == 0
            told = [line for line in asking.result() if line]
        assert "the server is stopping" in told[-2] and told[-1] == "data: [DONE]"
        printed = capsys.readouterr()
        assert printed.out == f"run: http://127.0.0.1:{port}  (Ctrl-C ends it)\n" and not printed.err


def answers(http: httpx.Client) -> bool:
    try:
        return http.get("/v1/models").is_success
    except httpx.ConnectError:
        return False
