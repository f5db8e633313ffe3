"""`gpt2c serve`: its API as OpenAI's own client sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("fastapi", reason="the package fastapi is not installed")
pytest.importorskip("uvicorn", reason="the package uvicorn is not installed")
openai = pytest.importorskip("openai", reason="the package openai is not installed")

import httpx  # noqa: E402, comes with openai
from serving import NAME, make_service, serving  # noqa: E402

from gpt2c.serve import engine, forms  # noqa: E402
from gpt2c.serve.forms import CompletionForm  # noqa: E402
from gpt2c.serve.service import Service  # noqa: E402
from gpt2c.serve.text import TextWriter, spelled  # noqa: E402
from gpt2c.serve.tokens import Token  # noqa: E402
from gpt2c.tokenizer import decode  # noqa: E402

MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Who are you?"}]


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
            likeliest = {*logprobs.topk(3).values.tolist(), float(logprobs[id])}  # the drawn one is told, too
            assert sorted(top.values()) == pytest.approx(sorted(likeliest), abs=1e-4)
            ids.append(id)
        assert told.text_offset[0] == 0 and len(told.text_offset) == 8

    @pytest.mark.parametrize("new", [0, 3])
    def test_logprobs_of_the_prompt(self, client, service, new, monkeypatch):
        """Whole and streamed, of texts and of ids, longer and shorter than a piece of a prompt, or than one token."""
        monkeypatch.setattr(engine, "PIECE", 4)
        prompts = ["O", "Onc", "Once", "Once€", "Once upon"]
        options = {"model": NAME, "temperature": 0, "max_tokens": new, "echo": True, "logprobs": 2}
        for given in (prompts, [service.encode(prompt) for prompt in prompts]):
            choices = client.completions.create(**options, prompt=given).choices
            for choice, prompt in zip(choices, prompts, strict=True):
                self.check_scores(service, choice, prompt, new)
        whole = client.completions.create(**options, prompt="Once upon").choices[0]
        parts = [c.choices[0] for c in client.completions.create(**options, prompt="Once upon", stream=True)]
        assert "".join(part.text for part in parts) == whole.text
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            found = [one for part in parts for one in getattr(part.logprobs, name)]
            assert found == getattr(whole.logprobs, name)

    def check_scores(self, service, choice, prompt, new):
        told, count = choice.logprobs, len(prompt.encode())
        ids = service.model.generate(torch.tensor([service.encode(prompt)]), new, temperature=0)
        logprobs = service.model(ids)[0][0].detach().log_softmax(-1)
        assert choice.text == prompt + expected(service, prompt, new) and choice.finish_reason == "length"
        assert told.token_logprobs[0] is None and told.top_logprobs[0] is None and len(told.tokens) == count + new
        wanted = logprobs[torch.arange(count + new - 1), ids[0, 1:]].tolist()
        assert told.token_logprobs[1:] == pytest.approx(wanted, abs=1e-4)
        best = logprobs[:-1].amax(-1).tolist()
        assert [max(top.values()) for top in told.top_logprobs[1:]] == pytest.approx(best, abs=1e-4)
        starts = [len(prompt.encode()[:i].decode(errors="ignore")) for i in range(count)]
        assert told.text_offset[:count] == starts

    def test_a_prompt_that_fills_the_context_is_scored(self, client, service):
        ids = [i % 256 for i in range(service.context)]
        answer = client.completions.create(model=NAME, prompt=ids, max_tokens=0, echo=True, logprobs=0)
        logprobs = service.model(torch.tensor([ids]))[0][0].detach().log_softmax(-1)
        wanted = logprobs[torch.arange(255), ids[1:]].tolist()
        assert answer.choices[0].logprobs.token_logprobs[1:] == pytest.approx(wanted, abs=1e-4)
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (256, 0)

    def test_tokens_that_are_spelled_alike(self, service, monkeypatch):
        """A byte that is no text, and a token of the four characters that it is told as: the likelier is told."""
        form = CompletionForm(NAME, service.tokenizer, [""], True)
        monkeypatch.setattr(forms, "spelled", lambda tokenizer, id: "a" if id == 5 else chr(id))
        assert form._top(Token(66, -3.0, ((97, -1.0), (5, -2.0)))) == {"a": -1.0, "B": -3.0}

    def test_no_prompt(self, client, service):
        """Nothing, in every spelling, is the beginning of a text, which is not the caller's."""
        begin = torch.tensor([[service.tokenizer.end_of_text]])
        text = decode(service.tokenizer, service.model.generate(begin, 9, temperature=0)[0, 1:].tolist())
        for prompt in ("", [""], [[]], None):
            answer = client.completions.create(model=NAME, prompt=prompt, max_tokens=9, temperature=0, echo=True)
            assert answer.choices[0].text == text
        options = {"model": NAME, "prompt": "", "max_tokens": 0, "echo": True, "logprobs": 1}
        assert client.completions.create(**options).choices[0].logprobs.tokens == []

    def test_a_length_that_is_not_asked_for_is_what_fits(self, client):
        """Of several prompts each has its own."""
        answer = client.completions.create(model=NAME, prompt=["x" * 250, "x" * 230, "x" * 255], temperature=0)
        assert answer.usage.completion_tokens == 6 + 16 + 1

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
        told = client.completions.create(model=NAME, prompt="Once", max_tokens=20, temperature=0, logprobs=0)
        assert len(told.choices[0].logprobs.tokens) == end + 1 == told.usage.completion_tokens

    def test_a_stream_holds_no_end_of_a_line_but_its_own(self, url, client, monkeypatch):
        """Of characters at which Python's splitlines, and so httpx's iter_lines, would cut an event in two."""
        strange = "a\u2028b\u2029c\x85d\x0b\x1ce€"
        monkeypatch.setattr(TextWriter, "feed", lambda self, id: strange)
        body = {"model": NAME, "prompt": strange, "max_tokens": 3, "stream": True, "echo": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body) as answer:
            lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        parts = [json.loads(line)["choices"][0]["text"] for line in lines[:-1]]
        assert lines[-1] == "[DONE]" and "".join(parts).startswith(strange * 2)

    @pytest.mark.parametrize("ids", [[0xE2], [0xE2, 0x82], [65, 0xF0, 0x9F, 0x98]])
    def test_ids_that_end_within_a_character(self, client, service, ids):
        answer = client.completions.create(model=NAME, prompt=ids, max_tokens=6, temperature=0, echo=True)
        written = service.model.generate(torch.tensor([ids]), 6, temperature=0)[0].tolist()
        assert answer.choices[0].text == decode(service.tokenizer, written)
        nothing = client.completions.create(model=NAME, prompt=ids, max_tokens=0, echo=True)
        assert nothing.choices[0].text == decode(service.tokenizer, ids)

    def test_each_text_ends_once(self, client):
        """Of several in one stream, some of them at a stop string."""
        chunks = list(client.completions.create(
            model=NAME, prompt=["Once", "Twice"], n=3, seed=3, max_tokens=30, stop=["#"], stream=True,
            stream_options={"include_usage": True},
        ))  # fmt: skip
        ends = [(c.index, c.finish_reason) for chunk in chunks for c in chunk.choices if c.finish_reason]
        assert sorted(index for index, _ in ends) == list(range(6)) and {"stop", "length"} == {why for _, why in ends}
        assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]

    def test_usage_counts_a_prompt_once(self, client):
        usage = client.completions.create(model=NAME, prompt=["abc", "d"], n=3, max_tokens=1).usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (4, 6)

    @pytest.mark.parametrize(
        "changes, param, code",
        [
            ({"model": "gpt-4"}, "model", "model_not_found"),
            ({"temperature": 2.5}, "temperature", None),
            ({"max_tokens": 300}, "max_tokens", "context_length_exceeded"),
            ({"prompt": "x" * 256}, "prompt", "context_length_exceeded"),
            ({"prompt": [1, 300]}, "prompt", None),
            ({"prompt": [1, "x"]}, "prompt", None),
            ({"n": 17}, "n", None),
            ({"prompt": ["x"] * 13, "n": 5}, "n", None),
            ({"stop": ["a"] * 65}, "stop", None),
            ({"frequency_penalty": 1.0}, "frequency_penalty", "unsupported_value"),
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

    def test_together_as_alone(self, client, service):
        """Prompts of many lengths, begun at different times: each gets the text that it gets by itself."""
        prompts = ["abcdefghij"[:n] * m for n, m in ((1, 1), (3, 1), (7, 5), (10, 12), (9, 2), (2, 30), (5, 5))]
        ask = lambda prompt: client.completions.create(  # noqa: E731
            model=NAME, prompt=prompt, max_tokens=100, temperature=0
        )
        with ThreadPoolExecutor(len(prompts)) as threads:
            answers = list(threads.map(ask, prompts))
        assert [answer.choices[0].text for answer in answers] == [expected(service, text, 100) for text in prompts]
