"""`gpt2c serve`: its limits, who may ask, what the page asks for, and how it ends."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import sys
import time
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
from gpt2c.commands.serve import Serve  # noqa: E402
from gpt2c.serve import pages  # noqa: E402
from gpt2c.serve.app import listen  # noqa: E402
from gpt2c.serve.errors import ApiError  # noqa: E402
from gpt2c.serve.service import Order  # noqa: E402
from gpt2c.tokenizer import get_tokenizer, save_tokenizer  # noqa: E402


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
                (half, 'the body holds "\\ud800", half of a character'),
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

    @pytest.mark.parametrize("given", [".", "../run", "../run/", "sub/.."])
    def test_a_name_for_every_path(self, tmp_path: Path, monkeypatch, given):
        make_model(257).save_pretrained(tmp_path / "run")
        (tmp_path / "run" / "sub").mkdir()
        monkeypatch.chdir(tmp_path / "run")
        with Serve(given)._site() as site:
            assert site.name == "run"

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
        save_tokenizer(get_tokenizer("bytes"), tmp_path / "run")
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
