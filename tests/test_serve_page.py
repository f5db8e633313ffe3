"""The viewer's page in headless Chromium, used as a reader uses it: typed into, clicked, looked at."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from browser import Page, browsing, needs_chromium

pytest.importorskip("fastapi", reason="the package fastapi is not installed")
pytest.importorskip("uvicorn", reason="the package uvicorn is not installed")

from serving import make_service  # noqa: E402

from gpt2c.generate import _nucleus  # noqa: E402
from gpt2c.serve.service import Service  # noqa: E402
from gpt2c.tokenizer import decode  # noqa: E402

pytestmark = needs_chromium

IDLE = "document.querySelector('[data-stop]').disabled"
DONE = f"{IDLE} && !document.querySelector('#lens').hidden && document.querySelectorAll('#arcs .word').length > 1"
WORDS = "[...document.querySelectorAll('.token')].map(word => word.textContent)"


@pytest.fixture(scope="module")
def service() -> Service:
    """At 5 ms a token, so that a text is seen while it comes."""
    torch.set_num_threads(1)
    service = make_service()
    step = service.engine._step
    service.engine._step = lambda rows: (time.sleep(0.005), step(rows))[1]  # type: ignore[method-assign]
    return service


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing(tmp_path_factory.mktemp("browser") / "profile") as page:
        yield page


@pytest.fixture
def page(browser: Page, url: str) -> Iterator[Page]:
    """Just opened. Nothing may go wrong in it, and nothing come from elsewhere."""
    browser.errors.clear()
    browser.requests.clear()
    browser.open(url)
    browser.wait("document.querySelector('#facts')?.textContent.includes('million')")
    yield browser
    assert not browser.errors
    assert browser.requests and all(address.startswith((url, "data:")) for address in browser.requests)


def slide(page: Page, **values: float) -> None:
    for name, value in values.items():
        at = f"document.getElementById('{name.replace('_', '-')}')"
        page.run(f"{at}.value = {value}, {at}.dispatchEvent(new Event('input'))")


def write(page: Page, prompt: str, **sliders: float) -> None:
    slide(page, **{"temperature": 0, "length": 20, **sliders})
    page.click("#prompt")
    page.type(prompt)
    page.press("Enter", ctrl=True)


@torch.no_grad()
def logits(service: Service, ids: list[int]) -> torch.Tensor:
    return service.model(torch.tensor([ids]))[0][0, -1]


def test_a_text_streams_in(page: Page, service: Service, tmp_path: Path) -> None:
    write(page, "Once upon", length=60)
    page.wait("document.querySelectorAll('.token').length > 15")
    assert not page.run(IDLE) and page.run("document.querySelectorAll('.token').length") < 9 + 60
    page.wait(DONE)
    ids = service.model.generate(torch.tensor([list(b"Once upon")]), 60, temperature=0)[0].tolist()
    shown = page.run("[...document.querySelectorAll('.token')].map(word => word.title.replace(/ .*/, ''))")
    assert page.run("document.querySelectorAll('.token.prompt').length") == 9
    assert shown[1:9] == list("nce") + ["·"] + list("upon") and len(shown) == 69
    likely = page.run("document.querySelectorAll('.token')[40].title").split("  ")[1]
    share = 100 * float(logits(service, ids[:40]).softmax(0)[ids[40]])
    assert float(likely.split()[0]) == pytest.approx(share, abs=0.51)
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_stop(page: Page, service: Service) -> None:
    write(page, "Once", length=250)
    page.wait("document.querySelectorAll('.token').length > 10")
    page.click("#prompt-form [data-stop]")
    page.wait(DONE)
    assert page.run("document.querySelectorAll('.token').length") < 250 and service.engine.load() == (0, 0)


def test_an_alternative_branches(page: Page, service: Service) -> None:
    write(page, "Once")
    page.wait(DONE)
    first = page.run(WORDS)
    page.click("#token-9")
    assert page.run("document.querySelector('#chosen').textContent") == page.run(
        "document.querySelector('#token-9').ariaLabel"
    )
    other = page.run("document.querySelector('#bars li:nth-child(3) .word').textContent")
    ids = service.model.generate(torch.tensor([list(b"Once")]), 20, temperature=0)[0].tolist()
    branched = ids[:9] + [int(logits(service, ids[:9]).topk(3).indices[2])]
    page.click("#bars li:nth-child(3) button")
    page.wait(f"{DONE} && document.querySelectorAll('#branches button').length == 2")
    assert page.run("document.activeElement.id") == "tokens"  # from which the keyboard goes on
    second = page.run(WORDS)
    assert second[:9] == first[:9] and second[9] != first[9] and len(second) == 30
    expected = service.model.generate(torch.tensor([branched]), 20, temperature=0)[0].tolist()
    positions = list(range(1, len(expected)))
    asked = f"(await import('/web/api.js')).post('/api/read', {{ids: {expected}, positions: {positions}}})"
    told = page.run(f"(async () => (await {asked}).tokens.map(token => token.text))()")
    assert [word.replace("↵\n", "\n") for word in second[1:]] == told
    assert other in page.run("document.querySelector('#branches [aria-pressed=true]').textContent")
    page.click("#branches button:first-child")
    page.wait(DONE)
    assert page.run(WORDS) == first


@pytest.mark.parametrize(
    "temperature, top_k, top_p",
    [(1, None, 1), (0.5, None, 0.8), (1.7, 7, 1), (1.2, 12, 0.6), (0, None, 1), (2, None, 0.3)],
)
def test_bars_are_what_sampling_draws_from(page: Page, service: Service, temperature, top_k, top_p) -> None:
    """The page's numbers, from forty log probabilities and a histogram, against gpt2c.generate on all logits."""
    write(page, "On", length=1)
    page.wait(DONE)
    asked = f"{{temperature: {temperature}, topK: {top_k or 'null'}, topP: {top_p}}}"
    found = page.run(f"""(async () => {{
        const {{ probabilities }} = await import('/web/sampling.js'), {{ post }} = await import('/web/api.js');
        const {{ tokens }} = await post('/api/read', {{ ids: [79, 110, 32], positions: [1, 2] }});
        const {{ bars, rest }} = probabilities(tokens[1], {asked});
        return [bars.map(bar => bar.id), bars.map(bar => bar.p), rest];
    }})()""")
    raw = logits(service, [79, 110])
    if top_k:
        raw = raw.masked_fill(raw < raw.topk(top_k).values[-1], -torch.inf)
    expected = (raw / max(temperature, 1e-6)).softmax(0)
    expected = _nucleus(expected[None], top_p)[0] if top_p < 1 else expected
    expected = expected / expected.sum()
    assert found[1] == pytest.approx(expected[found[0]].tolist(), rel=0.02, abs=1e-4)
    assert found[2] == pytest.approx(1 - float(expected[found[0]].sum()), rel=0.05, abs=2e-3)


def test_sliders_change_the_bars_at_once(page: Page) -> None:
    write(page, "Once")
    page.wait(DONE)
    shares = "[...document.querySelectorAll('#bars .share')].map(share => share.textContent)"
    slide(page, temperature=1)
    before, asked = page.run(shares), len(page.requests)
    slide(page, temperature=0.3)
    sharper = page.run(shares)
    assert float(sharper[0].split()[0]) > float(before[0].split()[0])
    slide(page, top_k=3)
    assert page.run("document.querySelectorAll('#bars li.cut').length") >= 9 and page.run(shares)[-1] == "0"
    assert len(page.requests) == asked


def test_attention_of_the_token_under_the_pointer(page: Page, service: Service) -> None:
    write(page, "Once upon a time", length=10)
    page.wait(DONE)
    ids = service.model.generate(torch.tensor([list(b"Once upon a time")]), 10, temperature=0)[0].tolist()
    slide(page, layer=2, head=2)
    arcs = "document.querySelectorAll('#arcs path').length"
    page.wait("document.querySelector('output[for=layer]').value == '2 of 2'")
    weights = reading(service, ids).attention(1, 1).weights
    for at in (12, 20):
        page.hover(f"#token-{at}")
        told, most = "document.querySelector('#heat-told').textContent", 100 * float(weights[at].max())
        page.wait(
            f"{arcs} == {int((weights[at].round(decimals=4) >= 0.01).sum())}"
            f" && ['{most:.0f} %', '{most:.1f} %'].some(share => {told}.includes(share))"
        )
    before = page.run("document.querySelector('#heat').toDataURL()")
    slide(page, head=1)
    page.wait(f"document.querySelector('#heat').toDataURL() != {before!r}")


def test_the_lens_ends_with_what_the_model_says(page: Page, service: Service) -> None:
    write(page, "Once upon a time", length=10)
    page.wait(DONE)
    ids = service.model.generate(torch.tensor([list(b"Once upon a time")]), 10, temperature=0)[0].tolist()
    assert page.run("document.querySelectorAll('#lens-table tbody tr').length") == 3
    # Greedy: the output's row foretells the next token, shown as the next column's.
    output = page.run(
        "[...document.querySelectorAll('#lens-table tbody tr:first-child td')].map(cell => cell.textContent)"
    )
    heads = page.run("[...document.querySelectorAll('#lens-table thead th')].map(cell => cell.textContent)")
    assert output[15:-1] == heads[17:] and len(output) == len(ids)
    page.hover("#lens-table tbody tr:first-child td:nth-child(8)")
    assert "layer 2 would say" in page.run("document.querySelector('#lens-told').textContent")
    page.click("#lens-table tbody tr:first-child td:nth-child(8)")
    assert page.run("document.querySelector('#tokens').getAttribute('aria-activedescendant')") == "token-6"


def test_by_keyboard(page: Page) -> None:
    write(page, "Once")
    page.wait(DONE)
    page.run("document.querySelector('#tokens').focus()")
    for key, wanted in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 23)):
        page.press(key)
        assert page.run("document.querySelector('[role=option][aria-selected=true]').id") == f"token-{wanted}"
    page.run("document.querySelector('#heat').focus()")
    page.press("ArrowUp")
    assert page.run("document.querySelector('[role=option][aria-selected=true]').id") == "token-22"
    unnamed = page.run("""[...document.querySelectorAll('input, textarea, select, button, [tabindex]')]
        .filter(e => !e.labels?.length && !e.ariaLabel && !e.textContent.trim()).map(e => e.outerHTML)""")
    assert unnamed == []


def test_a_mistake_is_told(page: Page) -> None:
    """The browser notes the refusal, too, and the page goes on."""
    write(page, "x" * 300)
    page.wait("!document.querySelector('#problem').hidden")
    assert "the prompt has 300 tokens" in page.run("document.querySelector('#problem').textContent")
    assert len(page.errors) == 1 and "400" in page.errors.pop()
    page.run("document.querySelector('#prompt').value = ''")
    write(page, "x", length=3)
    page.wait(f"{DONE} && document.querySelector('#problem').hidden")


@pytest.mark.parametrize("dark", [False, True])
def test_a_narrow_screen(page: Page, url: str, tmp_path: Path, dark: bool) -> None:
    page.open(url, width=400, dark=dark)
    page.wait("document.querySelector('#facts')?.textContent.includes('million')")
    assert page.run("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    write(page, "Once upon a time", length=40)
    page.wait(DONE)
    wide = page.run("""[...document.querySelectorAll('body *')].filter(e => !e.closest('#arcs, .scroll')
        && e.getBoundingClientRect().right > 400).map(e => e.outerHTML.slice(0, 80))""")
    assert page.run("document.documentElement.scrollWidth") <= 400 and wide == []


def test_a_conversation(page: Page, service: Service) -> None:
    page.click("#mode-chat")
    slide(page, temperature=0, length=15)
    messages = [{"role": "user", "content": "Who are you?"}]
    for text in ("Who are you?", "Why?"):
        page.click("#message")
        page.type(text)
        page.press("Enter")
        page.wait(DONE)
        prompt = torch.from_numpy(service.template.prompt(messages))[None]
        reply = service.model.generate(prompt, 15, temperature=0)[0, prompt.shape[1] :].tolist()
        shown = page.run("document.querySelector('#log li:last-child span').textContent")
        assert shown == decode(service.tokenizer, reply)
        messages += [{"role": "assistant", "content": shown}, {"role": "user", "content": "Why?"}]
    assert page.run("document.querySelectorAll('#log li').length") == 4
    page.click("#forget")
    assert page.run("document.querySelectorAll('#log li, .token').length") == 0


def test_the_oldest_exchanges_are_forgotten(page: Page, service: Service) -> None:
    """When the conversation and a fourth of the context, or the tokens asked for if they are fewer, do not fit."""
    page.click("#mode-chat")
    slide(page, temperature=0, length=10)
    messages = []
    for text in ("a" * 60, "b" * 60, "c" * 90):
        page.click("#message")
        page.type(text)
        page.press("Enter")
        page.wait(DONE)
        shown = page.run("document.querySelector('#log li:last-child span').textContent")
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": shown}]
    assert len(service.template.prompt(messages[:5])) > 256 - 10 >= len(service.template.prompt(messages[2:5]))
    prompt = torch.from_numpy(service.template.prompt(messages[2:5]))[None]
    reply = service.model.generate(prompt, 10, temperature=0)[0, prompt.shape[1] :].tolist()
    assert shown == decode(service.tokenizer, reply)
    notes = page.run("[...document.querySelectorAll('#log .note')].map(note => note.textContent)")
    assert notes == ["The context of 256 tokens is full: the oldest exchange is forgotten."]
    assert page.run("document.querySelectorAll('#log li').length") == 7


def test_a_reply_that_ends(page: Page, service: Service, monkeypatch) -> None:
    """Its end is a token, but nothing that was said; a branch to it writes nothing."""
    page.click("#mode-chat")
    slide(page, temperature=0, length=15)
    prompt = torch.from_numpy(service.template.prompt([{"role": "user", "content": "Why?"}]))[None]
    reply = service.model.generate(prompt, 15, temperature=0)[0, prompt.shape[1] :].tolist()
    at = next(i for i in range(1, 15) if reply[i] not in reply[:i])
    monkeypatch.setattr(Service, "chat_ends", lambda self: frozenset({reply[at]}))
    page.click("#message")
    page.type("Why?")
    page.press("Enter")
    page.wait(DONE)
    said = "document.querySelector('#log li:last-child span').textContent"
    assert page.run(said) == decode(service.tokenizer, reply[:at])
    first, tokens = prompt.shape[1], "document.querySelectorAll('.token').length"
    assert page.run(tokens) == first + at + 1
    instead = int(logits(service, prompt[0].tolist()).topk(3).indices[2])
    monkeypatch.setattr(Service, "chat_ends", lambda self: frozenset({instead}))
    page.click(f"#token-{first}")
    page.click("#bars li:nth-child(3) button")
    page.wait(f"{DONE} && {tokens} == {first + 1}")
    assert page.run(said) == ""


def test_nothing_is_shown_of_a_text_that_is_gone(page: Page) -> None:
    """Neither alternatives to branch to nor what comes late of its attention and lens."""
    page.run("""(fetch => window.fetch = async (path, options) => {
        const answer = await fetch(path, options);
        if (/attention|lens/.test(path)) await new Promise(done => (window.late ??= []).push(done));
        return answer;
    })(fetch)""")
    write(page, "Once")
    page.wait("window.late?.length == 2")
    page.click("#mode-chat")
    page.run("window.late.forEach(done => done()), new Promise(done => setTimeout(done, 50))")
    assert page.run("document.querySelector('#attention').hidden && document.querySelector('#lens').hidden")
    assert page.run("document.querySelectorAll('#bars li').length") == 0
    assert "Write something" in page.run("document.querySelector('#bars-hint').textContent")


def test_a_foreign_page_cannot_use_it(browser: Page, url: str, service: Service, monkeypatch) -> None:
    """Neither with a request that asks first nor with a plain one."""
    asked_for: list[object] = []
    monkeypatch.setattr(service.engine, "submit", asked_for.extend)
    browser.open("data:text/html,<title>elsewhere</title>")
    browser.wait("document.title == 'elsewhere'")
    body = '{"model": "tiny", "prompt": "x"}'
    for options in ("headers: {'content-type': 'application/json'},", "mode: 'no-cors',"):
        asked = f"fetch('{url}/v1/completions', {{method: 'POST', {options} body: '{body}'}})"
        answer = browser.run(f"{asked}.then(answer => [answer.type, answer.status], error => [error.name, 0])")
        assert answer in (["TypeError", 0], ["opaque", 0])
    assert not asked_for


def reading(service: Service, ids: list[int]):
    from gpt2c.serve.view import Reading

    return Reading(service.model, ids)


@pytest.mark.parametrize("width", [861, 1000, 1240, 1440])
def test_no_panel_lies_over_another(page: Page, width: int) -> None:
    """However far the page is scrolled: of a text that is higher than the alternatives, and of one that is lower."""
    page.send("Emulation.setDeviceMetricsOverride", width=width, height=600, deviceScaleFactor=1, mobile=False)
    write(page, "Once", length=12)
    page.wait(DONE)
    page.click("#token-9")
    for rows in (3, 30):
        page.run(f"document.querySelector('#prompt').rows = {rows}")
        assert not page.run(OVERLAPS)
    page.run("window.scrollTo(0, 200)")  # beside a long text the alternatives stay in sight
    assert page.run("document.querySelector('#next').getBoundingClientRect().top") == 12


OVERLAPS = """(() => {
  const found = [], panels = [...document.querySelectorAll('section:not([hidden])')];
  for (let at = 0; at < document.body.scrollHeight; at += 40) {
    window.scrollTo(0, at);
    const boxes = panels.map(panel => panel.getBoundingClientRect());
    boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b, j) => {
      if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
        found.push([panels[i].id, panels[i + 1 + j].id, window.scrollY]);
    }));
  }
  return found.slice(0, 3);
})()"""
