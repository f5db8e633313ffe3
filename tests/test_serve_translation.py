"""`gpt2c serve` of an encoder-decoder: its API, and its page in headless Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browser import browsing, needs_chromium

pytest.importorskip("fastapi", reason="the package fastapi is not installed")
pytest.importorskip("uvicorn", reason="the package uvicorn is not installed")
httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")

from serving import running  # noqa: E402

from gpt2c.cli import main  # noqa: E402
from gpt2c.serve import translation  # noqa: E402
from gpt2c.serve.app import translator_site  # noqa: E402
from gpt2c.serve.translation import CROSS, SOURCE, TARGET, Translations  # noqa: E402
from gpt2c.translator import Translator  # noqa: E402

TEXT = "forty two and one"


@pytest.fixture(scope="module")
def translator() -> Translator:
    """Untrained, with weights so large that what it says varies."""
    torch.set_num_threads(1)
    torch.manual_seed(4)
    found = Translator.new("and forty two one 0 1 2 3 4 5 6 7 8 9".split(), n_positions=12, n_embd=32, n_encoder=3)
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return found


@pytest.fixture(scope="module")
def url(translator: Translator) -> Iterator[str]:
    with running(translator_site(Translations("numbers", translator))) as url:
        yield url


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url) as client:
        yield client


def written(http: httpx.Client, **body: object) -> tuple[list[dict], list[dict], str]:
    """The prompt's tokens, the new ones, and why it ended."""
    answer = http.post("/api/write", json={"source": TEXT, **body})
    assert answer.status_code == 200, answer.text
    first, *events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n")[:-1]]
    return first["prompt"], [token for event in events for token in event["tokens"]], events[-1]["finish"]


def ids_of(tokens: list[dict]) -> list[int]:
    return [token["id"] for token in tokens]


@torch.no_grad()
def test_greedy_as_the_translator_itself(http, translator):
    prompt, tokens, finish = written(http, temperature=0)
    source = torch.tensor([translator.encode(TEXT)])
    expected = translator.model.greedy(source, 0, 1)[0].tolist()
    assert prompt == [{"id": 0, "text": "<begin>"}] and ids_of(tokens) == expected and len(set(expected)) > 2
    assert finish == ("stop" if expected[-1] == 1 else "length")
    assert [token["text"] for token in tokens] == [translator.vocabulary[i] for i in expected]
    y = translator.model.decode(torch.tensor([[0, *expected[:-1]]]), translator.model.encode(source))
    logprobs = translator.model.logits(y[0]).log_softmax(-1)
    for token, row in zip(tokens, logprobs, strict=True):
        assert token["logprob"] == pytest.approx(float(row[token["id"]]), abs=1e-4)
        assert [one[0] for one in token["top"][:3]] == row.topk(3).indices.tolist()


def test_a_branch_goes_on_from_its_tokens(http):
    _, tokens, _ = written(http, temperature=0)
    begun = [0, ids_of(tokens)[0], tokens[1]["top"][1][0]]
    prompt, more, finish = written(http, temperature=0, ids=begun, length=2)
    assert ids_of(prompt) == begun and (len(more) == 2 or finish == "stop")
    _, alone, _ = written(http, temperature=0, ids=[0, ids_of(tokens)[0]])
    assert ids_of(alone) == ids_of(tokens)[1:]


def test_end_ends_it(http, translator, monkeypatch):
    end = torch.nn.functional.one_hot(torch.tensor([1]), len(translator.vocabulary)).float()
    monkeypatch.setattr(translator.model, "logits", lambda y: 100 * end)
    assert [ids_of(part) if isinstance(part, list) else part for part in written(http)] == [[0], [1], "stop"]


def test_nothing_is_written_after_the_end(http, translator):
    assert written(http, ids=[0, 5, 1])[1:] == ([], "stop")
    assert written(http, ids=[0] * 12)[1:] == ([], "length")
    _, tokens, finish = written(http, ids=[0] * 11, length=9, top_k=1)
    assert len(tokens) == 1 and finish == ("stop" if ids_of(tokens) == [1] else "length")


def test_damaged_weights(translator):
    damaged = Translator.new(translator.vocabulary[2:], n_positions=12, n_embd=32)
    with torch.no_grad():
        damaged.model.wte.weight[3] = torch.nan
    with running(translator_site(Translations("numbers", damaged))) as url:
        assert "weights must be damaged" in httpx.post(f"{url}/api/write", json={"source": TEXT}).text


def test_a_place_is_had_and_freed(translator):
    served = Translations("numbers", translator)
    look = {"source": TEXT, "ids": [0, 5], "kind": SOURCE, "layer": 0, "head": 0}
    with running(translator_site(served)) as url, httpx.Client(base_url=url) as http:
        assert written(http) and http.post("/api/attention", json=look).is_success and served.busy == 0
        served.busy = translation.MOST_BUSY
        for path, body in (("write", {"source": TEXT}), ("attention", look)):
            answer = http.post(f"/api/{path}", json=body)
            assert answer.status_code == 429 and answer.json()["error"]["code"] == "rate_limit_exceeded"


def test_a_seed_repeats(http):
    first, again = (ids_of(written(http, temperature=2, seed=3)[1]) for _ in range(2))
    others = {tuple(ids_of(written(http, temperature=2, seed=seed)[1])) for seed in range(4, 8)}
    assert first == again and len(others) > 1


def test_its_three_attentions(http, translator):
    ids = [0, 5, 6, 7]
    source = translator.encode(TEXT)
    maps = translator.model.attention_maps(torch.tensor([source]), torch.tensor([ids]))
    spelled = [translator.vocabulary[i] for i in ids]
    for kind, layer, expected, rows, columns in [
        (CROSS, 1, maps.cross[..., :3, :], spelled[1:], TEXT.split()),
        (TARGET, 0, maps.target, spelled, spelled),
        (SOURCE, 2, maps.source, TEXT.split(), TEXT.split()),
    ]:
        asked = {"source": TEXT, "ids": ids, "kind": kind, "layer": layer, "head": 1}
        found = http.post("/api/attention", json=asked).json()
        assert (found["rows"], found["columns"]) == (rows, columns)
        assert torch.allclose(torch.tensor(found["weights"]), expected[layer, 0, 1], atol=1e-4)
    kinds = http.get("/api/model").json()["attention"]
    assert [(kind["name"], kind["layers"], kind["heads"]) for kind in kinds] == [
        (CROSS, 2, 2),
        (TARGET, 2, 2),
        (SOURCE, 3, 2),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "forty three"}, "'three', which the model has never seen; it knows 0 1 2"),
        ({"source": ""}, "has 0 tokens, expected 1 to 12"),
        ({"source": "one " * 13}, "has 13 tokens, expected 1 to 12"),
        ({"source": "x" * 3000}, "at most 2000 characters"),
        ({"ids": [3]}, "ids: expected 0 and then ids below 16, found 3"),
        ({"ids": [0, 16]}, "up to 16"),
        ({"ids": [0] * 13}, "ids has 13 tokens, expected at most 12"),
        ({"temperature": -1}, "temperature"),
        ({"text": "x"}, "text is not supported"),
    ],
)
def test_mistakes(http, changes, message):
    answer = http.post("/api/write", json={"source": TEXT, **changes})
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_what_it_does_not_have(http):
    asked = {"source": TEXT, "ids": [0, 5], "kind": SOURCE, "layer": 3, "head": 0}
    assert "no head 0 of layer 3" in http.post("/api/attention", json=asked).json()["error"]["message"]
    assert http.get("/v1/models").status_code == 404 and http.get("/web/nothing.js").status_code == 404
    assert http.post("/api/write", json={"source": TEXT}, headers={"origin": "https://evil.example"}).status_code == 403


def test_weights_are_of_gpt2(translator, tmp_path: Path, capsys):
    translator.save(tmp_path / "numbers")
    assert main(["serve", str(tmp_path / "numbers"), "--port", "0", "--weights", "int8"]) == 2
    assert "--weights int8 is for GPT-2" in capsys.readouterr().err


@needs_chromium
def test_the_page(url, translator, tmp_path: Path):
    """Typed into, branched, and looked at: from a line of words to another, and within one."""
    end = "document.querySelector('[data-stop]').disabled && document.querySelectorAll('#arcs .word').length"
    count = "document.querySelectorAll('#arcs path').length"
    source = translator.encode(TEXT)
    with browsing(tmp_path / "profile") as page:
        page.open(url)
        page.wait("document.querySelector('#facts')?.textContent.includes('an encoder of 3')")
        page.click("#prompt")
        page.type(TEXT)
        page.press("Enter", ctrl=True)
        page.wait(end)
        expected = translator.model.greedy(torch.tensor([source]), 0, 1)[0].tolist()
        words = page.run("[...document.querySelectorAll('.token')].map(word => word.textContent)")
        assert words == ["<begin>", *(translator.vocabulary[i] for i in expected)]
        assert page.run("document.querySelector('#lens').hidden")
        maps = translator.model.attention_maps(torch.tensor([source]), torch.tensor([[0, *expected]]))
        for row in (0, 3):
            page.hover(f"#token-{row + 1}")
            page.wait(f"{count} == {int((maps.cross[0, 0, 0, row].round(decimals=4) >= 0.01).sum())}")
            most = TEXT.split()[int(maps.cross[0, 0, 0, row].argmax())]
            assert f"looks at “{most}”" in page.run("document.querySelector('#heat-told').textContent")
        lines = "[...document.querySelectorAll('#arcs .words')].map(line => line.children.length)"
        assert page.run(lines) == [len(expected), 4]
        kind = "document.querySelector('#kind')"
        choose = f"{kind}.value = '{{}}', {kind}.dispatchEvent(new Event('input'))"
        page.run(choose.format(SOURCE))
        page.wait(f"{lines}.join() == '4' && document.querySelector('output[for=layer]').value == '1 of 3'")
        page.click("#arcs .word:nth-child(3)")
        page.wait(f"{count} == {int((maps.source[0, 0, 0, 2].round(decimals=4) >= 0.01).sum())}")
        page.run(choose.format(TARGET))
        page.wait(f"{lines}.join() == '{len(expected) + 1}'")
        page.click("#token-2")
        page.click("#bars li:nth-child(3) button")
        page.wait(f"{end} && document.querySelectorAll('#branches button').length == 2")
        branched = page.run("[...document.querySelectorAll('.token')].map(word => word.textContent)")
        assert branched[:2] == words[:2] and branched[2] != words[2]
        page.run("document.querySelector('#prompt').value = 'forty three'")
        page.click("#prompt-form [data-start]")
        page.wait("document.querySelector('#problem').textContent.includes('never seen')")
        assert len(page.errors) == 1 and "400" in page.errors[0]
        assert all(address.startswith((url, "data:")) for address in page.requests)
