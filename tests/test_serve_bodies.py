"""`gpt2c serve`: what the API takes, and what it refuses, as clients of other servers send it."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi", reason="the package fastapi is not installed")
pytest.importorskip("uvicorn", reason="the package uvicorn is not installed")
httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")

from serving import NAME  # noqa: E402

USER = {"role": "user", "content": "Hi"}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def web(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url) as web:
        yield web


def completion(web: httpx.Client, **changes: Any) -> httpx.Response:
    body = {"model": NAME, "prompt": "Once", "max_tokens": 1, "temperature": 0, **changes}
    return web.post("/v1/completions", json=body)


def chat(web: httpx.Client, **changes: Any) -> httpx.Response:
    body = {"model": NAME, "messages": [USER], "max_tokens": 1, "temperature": 0, **changes}
    return web.post("/v1/chat/completions", json=body)


def said(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


@pytest.fixture(scope="module")
def plain(web: httpx.Client) -> dict[str, str]:
    """What both kinds of requests get without anything more."""
    return {ask.__name__: said(ask(web)) for ask in (completion, chat)}


def refused(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and "\n" not in error["message"]
    return error


# What changes nothing, and, of the same parameter, what would.
NEUTRAL = [
    ("logit_bias", {}, {"5": 1}),
    ("logit_bias", {"5": 0, "6": 0.0}, {"5": 0, "6": -100}),
    ("tools", [], [{"type": "function"}]),
    ("tool_choice", "none", "required"),
    ("tool_choice", "auto", {"type": "function"}),
    ("functions", [], [{"name": "f"}]),
    ("function_call", "none", {"name": "f"}),
    ("response_format", {"type": "text"}, {"type": "json_object"}),
    ("modalities", ["text"], ["text", "audio"]),
    ("store", False, True),
    ("service_tier", "auto", "flex"),
    ("presence_penalty", 0, 0.5),
    ("frequency_penalty", 0.0, -1),
    ("repetition_penalty", 1.0, 1.1),
    ("suffix", "", "x"),
    ("top_k", -1, 40),
    ("stop_token_ids", [], [1]),
    ("ignore_eos", False, True),
    ("min_p", 0, 0.05),
    ("reasoning_effort", "none", "high"),
    ("stream_options", {"include_usage": True}, {"include_obfuscation": True}),
    ("n", 1, 0),
    ("stop", [], 5),
    ("stop", ["", None], [["x"]]),
    ("user", "me", 5),
    ("metadata", {"a": "b"}, "a"),
]


@pytest.mark.parametrize("name, neutral, other", NEUTRAL)
def test_values_without_effect(web: httpx.Client, plain: dict[str, str], name: str, neutral: Any, other: Any) -> None:
    for ask in (completion, chat):
        assert said(ask(web, **{name: neutral})) == plain[ask.__name__]
        assert refused(ask(web, **{name: other}))["param"].startswith(name)


def test_what_only_the_other_kind_has(web: httpx.Client) -> None:
    assert said(chat(web, echo=False, best_of=1)) == said(chat(web))
    assert refused(chat(web, echo=True))["param"] == "echo"
    assert said(completion(web, top_logprobs=0, logprobs=False)) == said(completion(web))
    assert refused(completion(web, top_logprobs=2))["param"] == "top_logprobs"


def test_parallel_tool_calls_of_no_tools(web: httpx.Client) -> None:
    assert said(chat(web, parallel_tool_calls=True)) == said(chat(web, parallel_tool_calls=False)) == said(chat(web))


def test_null_is_absence(web: httpx.Client) -> None:
    """Of every parameter, and in what is inside of one."""
    nulls = dict.fromkeys(["seed", "stream", "top_p", "logprobs", *(name for name, _, _ in NEUTRAL)])
    assert said(completion(web, **nulls, echo=None, best_of=None)) == said(completion(web))
    assert said(chat(web, **nulls, top_logprobs=None, max_completion_tokens=None)) == said(chat(web))
    message = {**USER, "name": None, "tool_calls": None, "function_call": None, "audio": None, "refusal": None}
    assert said(chat(web, messages=[message], stream_options={"include_usage": None})) == said(chat(web))
    assert completion(web, max_tokens=None).json()["usage"]["completion_tokens"] == 16
    assert completion(web, temperature=None).status_code == 200
    assert refused(completion(web, model=None))["message"] == "model: field required"
    assert refused(chat(web, messages=None))["message"] == "messages: field required"


def test_the_page_takes_null_too(web: httpx.Client) -> None:
    asked = {"text": "x", "ids": None, "messages": None, "length": 1, "temperature": None, "top_p": None, "seed": None}
    assert web.post("/api/write", json=asked).status_code == 200


@pytest.mark.parametrize(
    "prompt, words",
    [
        ([], "found []"),
        ([-1], "prompt holds the token -1, expected ids from 0 to 260"),
        ([5, 261], "prompt holds the token 261, expected ids from 0 to 260"),
        ([10**30], "expected ids from 0 to 260"),
        ([[1, 2], [3, -7]], "prompt holds the token -7"),
        ([1.5], "with 1.5 in it"),
        ([[1, 2.0]], "with 2.0 in it"),
        ([True], "with true in it"),
        ([[[1]]], "with [1] in it"),
        ([1, "x"], 'with "x" in it'),
        (["x", 1], "with 1 in it"),
        (["x", None], "with null in it"),
        (5, "found 5"),
        ({"text": "x"}, 'found {"text": "x"}'),
    ],
)
def test_prompts_that_are_none(web: httpx.Client, prompt: Any, words: str) -> None:
    error = refused(completion(web, prompt=prompt))
    assert words in error["message"] and error["param"] == "prompt"


def test_a_list_of_texts_and_of_ids(web: httpx.Client) -> None:
    both = completion(web, prompt=["Once", list(b"Once")]).json()["choices"]
    assert both[0]["text"] == both[1]["text"] == said(completion(web))


def test_lengths(web: httpx.Client) -> None:
    for ask in (completion, chat):
        assert ask(web, max_tokens=None, max_completion_tokens=3).json()["usage"]["completion_tokens"] == 3
        assert ask(web, max_tokens=3, max_completion_tokens=3).json()["usage"]["completion_tokens"] == 3
        assert "expected one of them" in refused(ask(web, max_tokens=2, max_completion_tokens=3))["message"]
        for length in (-1, 2.5, "5", True):
            assert refused(ask(web, max_tokens=length))["param"] == "max_tokens"
        assert refused(ask(web, max_tokens=10**30))["code"] == "context_length_exceeded"
    nothing = completion(web, max_tokens=0).json()
    assert nothing["choices"][0]["text"] == "" and nothing["choices"][0]["finish_reason"] == "length"
    assert said(completion(web, max_tokens=0, echo=True)) == "Once"
    assert "at least 1" in refused(chat(web, max_tokens=0))["message"]


def test_all_of_the_best(web: httpx.Client) -> None:
    assert len(completion(web, n=2, best_of=2).json()["choices"]) == 2
    assert refused(completion(web, best_of=2))["param"] == "best_of"


def test_messages(web: httpx.Client) -> None:
    as_system = [chat(web, messages=[{"role": role, "content": "Be"}, USER]) for role in ("system", "developer")]
    assert said(as_system[0]) == said(as_system[1]) and as_system[0].json()["usage"] == as_system[1].json()["usage"]
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i", "cache_control": {"type": "ephemeral"}}]
    assert said(chat(web, messages=[{**USER, "content": parts}])) == said(chat(web))
    before = {"role": "assistant", "content": "x", "tool_calls": [], "annotations": [], "refusal": None}
    assert chat(web, messages=[USER, before, USER]).status_code == 200
    image = {"type": "image_url", "image_url": {"url": "x"}}
    for message, param in [
        ({**USER, "content": [image]}, "messages.0.content.0"),
        ({**USER, "content": []}, "messages.0.content"),
        ({**USER, "content": ["x"]}, "messages.0.content.0"),
        ({**USER, "content": [{**parts[0], "x": 1}]}, "messages.0.content"),
        ({**USER, "content": None}, "messages.0.content"),
        ({**USER, "content": {}}, "messages.0.content"),
        ({**USER, "name": "Ann"}, "messages.0.name"),
        ({**USER, "tool_calls": [{}]}, "messages.0.tool_calls"),
        ({**USER, "role": "tool"}, "messages"),
        ("Hi", "messages.0"),
        (None, "messages.0"),
    ]:
        assert refused(chat(web, messages=[message]))["param"] == param
    assert "expected a list of at least one" in refused(chat(web, messages=[]))["message"]


BODY = json.dumps({"model": NAME, "prompt": "x", "max_tokens": 1}).encode()


@pytest.mark.parametrize(
    "content, headers, status, words",
    [
        (BODY.replace(b"1}", b"NaN}"), {}, 400, "the body is not JSON: it holds NaN"),
        (BODY.replace(b"1}", b"-Infinity}"), {}, 400, "the body is not JSON: it holds -Infinity"),
        (b'{"model": "tiny", "prompt": "x", "temperature": 1e999}', {}, 400, "temperature: input should be less than"),
        (BODY.replace(b"1}", b"9" * 5000 + b"}"), {}, 400, "a number has too many digits"),
        (b"[" * 100_000, {}, 400, "nested too deeply"),
        (b'{"model": "\xff"}', {}, 400, "the body is not UTF-8: its byte 11 is 0xff"),
        (BODY.decode().encode("utf-16"), {}, 400, "the body is not UTF-8"),
        (BODY.replace(b'"x"', b'"x\\ud83d y"'), {}, 400, "half of a character"),
        (BODY.replace(b'"x"', b'"x", "\\udc00": 1'), {}, 400, "half of a character"),
        (BODY.replace(b'"x"', b'"\\ud83d\\ude00"'), {}, 200, ""),
        (BODY + b"x", {}, 400, "the body is not JSON: extra data, line 1 column"),
        (b"", {}, 400, "the body is not JSON: expecting value"),
        (b"null", {}, 400, "the body is not a JSON object"),
        (gzip.compress(BODY, mtime=0), {"content-encoding": "gzip"}, 415, "Content-Encoding: gzip is not supported"),
        (BODY, {"content-type": "text/plain"}, 415, "expected Content-Type: application/json"),
        (b"\xef\xbb\xbf" + BODY, {}, 200, ""),
        (BODY, {"content-type": "Application/JSON; charset=utf-8", "content-encoding": "identity"}, 200, ""),
    ],
)
def test_bodies(web: httpx.Client, content: bytes, headers: dict[str, str], status: int, words: str) -> None:
    answer = web.post("/v1/completions", content=content, headers={**JSON, **headers})
    assert answer.status_code == status and words in answer.text, answer.text


def test_methods_and_paths(web: httpx.Client) -> None:
    for path in ("/", "/v1/models", f"/v1/models/{NAME}", "/web/main.js"):
        head, get = web.head(path), web.get(path)
        assert head.status_code == get.status_code and head.content == b""
        assert head.headers["content-length"] == str(len(get.content))
    assert web.options("/v1/completions").status_code == 405
    assert web.options("/v1/completions").headers["allow"] == "POST"
    for path in ("/completions", "/v1/responses", "/v1", "/v1/v1/completions"):
        message = refused(web.post(path, json={}), 404)["message"]
        assert message.endswith("expected one of /, /v1/models, /v1/completions, /v1/chat/completions")


def test_a_body_in_chunks_or_after_a_pause(web: httpx.Client, url: str) -> None:
    """Without a length, and sent only when the server has said that it may be; too long a one need not be sent."""
    answer = web.post("/v1/completions", content=iter([BODY[:9], BODY[9:]]), headers=JSON)
    assert answer.status_code == 200
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for length, told in ((len(BODY), b"HTTP/1.1 100 Continue"), (2**24, b"HTTP/1.1 413 ")):
        with socket.create_connection(urlsplit(url).netloc.split(":")) as raw:
            raw.sendall(f"{head}Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n".encode())
            assert raw.recv(1000).startswith(told)
            if length == len(BODY):
                raw.sendall(BODY)
                assert raw.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_a_request_that_cannot_be_answered_is_no_stream(web: httpx.Client) -> None:
    answer = completion(web, prompt="x" * 300, stream=True)
    assert refused(answer)["code"] == "context_length_exceeded" and "json" in answer.headers["content-type"]


def test_a_connection_lives_through_refusals(url: str) -> None:
    """What follows on it is answered, also where a body was refused unread."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    for headers, status in [
        (JSON, 200),
        ({**JSON, "origin": "http://x"}, 403),
        ({"content-type": "x"}, 415),
        (JSON, 200),
    ]:
        connection.request("POST", "/v1/completions", BODY, headers)
        answer = connection.getresponse()
        assert answer.status == status and json.loads(answer.read())
    connection.close()
