"""The report: what it holds, what it refuses, and what a browser makes of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from browser import NO_NETWORK, QUIET, needs_chromium

from gpt2c import flops
from gpt2c.bench.machine import ProcessorTime
from gpt2c.cli import main
from gpt2c.commands.report import names
from gpt2c.errors import UserError
from gpt2c.evaluation import known
from gpt2c.report.figures import figures
from gpt2c.report.read import read_run
from gpt2c.report.thin import MOST_PIECES, pieces, recent
from gpt2c.settings import TrainConfig
from gpt2c.train import train

plotly = pytest.importorskip("plotly", reason="the package plotly is not installed")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """A run folder written by hand: steps, every tenth evaluated, a rollback in the middle."""

    def make(name: str, steps: int = 40, **changes: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        settings = TrainConfig(out=folder, steps=steps, **changes).to_dict()
        record = {
            "gpt2c": "0.1", "settings": settings, "data": {"tokens": 99, "crc32": 7}, "threads": 2, "parameters": 1234,
            "machine": {"processor": "A <b>machine</b>"}, "flops_per_token": 2e3, "peak_flops": 1e6,
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(record))
        rows: list[dict[str, Any]] = []
        for step in range(1, steps + 1):
            row = {"step": step, "loss": 9 / step + 2, "lr": 1e-3, "grad_norm": 1.0, "tok_per_s": 100.0 + step}
            rows.append({**row, "seconds": step / 2})
            if step % 10 == 0:
                rows.append({"step": step, "val_loss": 9 / step + 2.5, "seconds": step / 2})
                scores = {"hellaswag_acc": 0.26, "hellaswag_acc_norm": 0.27, "hellaswag_items": 10}
                rows.append({"step": step, **scores, "seconds": step / 2})
        rows.append({"step": 20, "event": "rollback", "reason": "the loss is nan <script>alert(1)</script>"})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "samples.txt").write_text(
            "--- step 20 ---\nOnce\n\n--- step 40 ---\n</pre><script>alert(2)</script>\n\n"
        )
        return folder

    return make


def write(tmp_path: Path, *runs: Path) -> str:
    out = tmp_path / "report.html"
    assert main(["report", *map(str, runs), "--out", str(out)]) == 0
    return out.read_text()


def test_everything_is_in_the_page_and_nothing_comes_from_elsewhere(make: Callable, tmp_path: Path) -> None:
    html = write(tmp_path, make("first"), make("second", lr=0.5))
    shown = html[: html.index("<script>")]
    for words in ("first", "second", "1,234", "A &lt;b&gt;machine&lt;/b&gt;", "rollback", "step 40", "crc32", "MFU"):
        assert words in shown, words
    differing = re.findall(r'<tr class="differs"><td>(\w+)</td>\s*<td>(.*?)</td><td>(.*?)</td>', shown)
    assert [name for name, *_ in differing] == ["out", "lr"] and differing[1][1:] == ("0.001", "0.5")
    assert "<script>alert" not in html and "&lt;script&gt;alert(2)&lt;/script&gt;" in shown
    assert not re.findall(r'<(?:link|script|img|iframe)[^>]*(?:src|href)="(?!data:)', html)
    assert "@import" not in shown and "url(" not in shown


def traces(run: Path, figure: str, kind: str) -> list[dict[str, Any]]:
    (found,) = (drawn for drawn in figures([read_run(run, run.name)]) if drawn["id"] == figure)
    return [trace for trace in found["traces"] if trace["kind"] == kind]


def test_known_curves_stand_beside_gpt2s_tokens_only(make: Callable, tmp_path: Path) -> None:
    run = make("gpt2", tokenizer="gpt2", batch_size=8, context=1024)
    (curve,) = traces(run, "loss", "known")
    assert curve["y"] == [value.loss for value in known.LOSSES if value.step]
    assert [x * 8192 for x in curve["x"]] == pytest.approx([v.tokens for v in known.LOSSES if v.step])
    assert "classic FineWeb" in curve["name"]
    assert {level["y"] for level in traces(run, "loss", "level")} == {3.4250, 3.2924}
    assert "known validation losses" in write(tmp_path, run)
    other = make("bytes", tokenizer="bytes")
    assert not traces(other, "loss", "known") and not traces(other, "loss", "level")
    assert "known validation losses" not in write(tmp_path, other)
    assert len(traces(other, "hellaswag", "level")) == len(known.HELLASWAG) + 1


def test_mfu_is_the_share_of_the_peak(make: Callable) -> None:
    (curve,) = traces(make("run"), "mfu", "line")
    assert curve["y"][:2] == pytest.approx([101 * 2e3 / 1e6, 102 * 2e3 / 1e6])


def test_an_mfu_over_the_peak_is_unknown(make: Callable, tmp_path: Path) -> None:
    """Its peak was measured on a busy processor, or could not be."""
    for name, peak in (("over", 139 * 2e3), ("none", None), ("exact", 140 * 2e3)):
        run = make(name)
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(record | {"peak_flops": peak}))
        shown = write(tmp_path, run)
        known = name == "exact"
        assert [figure["id"] for figure in figures([read_run(run, name)])].count("mfu") == known
        facts = dict(re.findall(r"<dt>([^<]*)</dt>\s*<dd>([^<]*)</dd>", shown))
        assert facts["MFU"] == ("86.1%" if known else "unknown")


@pytest.mark.parametrize(("busy", "expected"), [([0.0], 1), ([1.5, 1.5, 0.2], 3), ([1.5] * 5, None)])
def test_the_peak_is_measured_while_nothing_else_runs(
    monkeypatch: pytest.MonkeyPatch, busy: list[float], expected: int | None
) -> None:
    """busy: cores of the two that others take, at each try; a try's number is its rate."""
    now, tries = [ProcessorTime(0.0, 0.0, 0.0)], []

    def product_rate() -> float:
        tries.append(None)
        now[0] = ProcessorTime(now[0].capacity + 2, now[0].all + busy[len(tries) - 1] + 0.5, now[0].own + 0.5)
        return float(len(tries))

    monkeypatch.setattr(ProcessorTime, "now", classmethod(lambda cls: now[0]))
    monkeypatch.setattr(flops, "product_rate", product_rate)
    monkeypatch.setattr(flops.os, "cpu_count", lambda: 2)
    assert flops.peak_flops(torch.device("cpu"), "fp32") == expected and len(tries) == len(busy)
    busy.append(1.9)
    assert flops.peak_flops(torch.device("cpu"), "fp32", world=3) == 3 * len(tries)  # the others are its own


def add(run: Path, *rows: dict[str, Any]) -> None:
    with open(run / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_events_lie_on_the_loss(make: Callable) -> None:
    """Also where the step has no loss, or one that is not finite, and before the first."""
    run = make("run")
    add(run, {"step": 41, "loss": float("nan")}, {"step": 41, "event": "skip", "reason": "the loss is nan"})
    add(run, {"step": 0, "event": "resume", "reason": "from the start"})
    for figure, first, at_20, last in (("loss", 11, 9 / 20 + 2, 9 / 40 + 2), ("norm", 1, 1, 1)):
        (events,) = traces(run, figure, "events")
        assert events["x"] == [20, 41, 0] and events["y"] == pytest.approx([at_20, last, first])
        assert events["event"] == ["rollback", "skip", "resume"]
        assert events["text"][0].startswith("rollback: the loss is nan")


def test_steps_that_a_rollback_took_back(make: Callable) -> None:
    """The line has what came of them in the end, the range both."""
    run = make("run")
    add(run, *({"step": step, "loss": 7.0} for step in (30, 31)))
    (line,), (span,) = traces(run, "loss", "line"), traces(run, "loss", "range")
    assert line["x"] == list(range(1, 41)) and line["y"][28:32] == pytest.approx(
        [9 / 29 + 2, 7, 7, 9 / 32 + 2], rel=1e-5
    )
    assert span["greatest"][29] == 7 and span["least"][29] == pytest.approx(9 / 30 + 2)


def test_long_curves_keep_their_extremes() -> None:
    pairs = [(i, float(i % 2)) for i in range(20_000)]
    pairs[7777], pairs[12345] = (7777, 50.0), (12345, -50.0)
    curve = pieces(pairs)
    assert len(curve.x) <= MOST_PIECES and max(curve.greatest) == 50 and min(curve.least) == -50
    assert abs(curve.x[curve.greatest.index(50)] - 7777) <= 20_000 / MOST_PIECES
    assert curve.x == sorted(curve.x) and curve.mean[0] == pytest.approx(0.5, abs=0.1)
    few = pieces([(3, 1.0), (4, float("inf")), (5, 2.0)])
    assert few.x == [3, 5] and few.mean == few.least == few.greatest == [1, 2]
    assert pieces([]).x == []


def test_the_latest_loss() -> None:
    assert recent([(i, float(i)) for i in range(100)]) == 98.5
    assert recent([(1, 2.0), (2, float("nan"))]) == 2 and recent([(1, float("nan"))]) is None


def test_long_runs_stay_small(make: Callable, tmp_path: Path) -> None:
    from plotly.offline import get_plotlyjs

    html = write(tmp_path, make("first", steps=4000), make("second", steps=4000))
    assert len(html) - len(get_plotlyjs()) < 600_000
    assert f"Curves of more than {MOST_PIECES} points" in html


def test_a_run_that_is_still_going(make: Callable, tmp_path: Path) -> None:
    folder = make("run")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 41, "lo')
    assert read_run(folder, "run").last_step == 40
    for name in ("metrics.jsonl", "samples.txt"):
        (folder / name).unlink()
    assert read_run(folder, "run").last_step == 0 and "0 of 40" in write(tmp_path, folder)


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", '{"step": "3"}', '{"step": 3, "loss": null}', '{"step": 3, "lr": "x"}']
)
def test_damaged_metrics(make: Callable, line: str) -> None:
    folder = make("run")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:3], line, *lines[3:]]))
    with pytest.raises(
        UserError, match=r"metrics.jsonl, line 4 is damaged: expected a JSON object with numbers of a step"
    ):
        read_run(folder, "run")


@pytest.mark.parametrize(
    "damage",
    ["{", "[]", "{}", {"settings": {}}, {"machine": [1]}, {"parameters": "many"}, {"settings": {"steps": None}}],
)
def test_a_damaged_record(make: Callable, damage: Any) -> None:
    folder = make("run")
    record = json.loads((folder / "run.json").read_text())
    if isinstance(damage, dict) and damage.get("settings"):
        damage = {"settings": record["settings"] | damage["settings"]}
    (folder / "run.json").write_text(damage if isinstance(damage, str) else json.dumps(record | damage))
    with pytest.raises(UserError, match="run.json is damaged: expected the settings of a gpt2c run"):
        read_run(folder, "run")


def test_missing_files(tmp_path: Path, make: Callable, capsys: pytest.CaptureFixture) -> None:
    for args in (
        ["report", str(tmp_path / "no")],
        ["report"],
        ["report", str(make("run")), f"--out={tmp_path / 'no/x'}"],
    ):
        assert main(args) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "no").exists()


def test_names_tell_runs_apart() -> None:
    assert names((Path("/a/x"), Path("/a/y"))) == ["x", "y"]
    assert names((Path("/a/x"), Path("/b/x"))) == ["a/x", "b/x"]
    assert names((Path("/a/x"), Path("/a/x"))) == ["x", "x"]


def test_without_the_packages(make: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert main(["report", str(make("run"))]) == 2
    assert 'needs the packages plotly and jinja2: pip install "gpt2c[report]"' in capsys.readouterr().err


def browser(*args: str) -> subprocess.CompletedProcess[str]:
    command = ["chromium", *QUIET, NO_NETWORK, "--virtual-time-budget=3000", "--enable-logging=stderr", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


PRESSED = """<script>{
const told = {}, loss = document.getElementById("loss"), press = id => document.getElementById(id).click();
const tell = name => {
  const { xaxis, yaxis } = loss._fullLayout, curves = loss._fullData.filter(t => t.visible).length;
  told[name] = [xaxis.range[1], yaxis.type, yaxis.range[1], curves, document.documentElement.dataset.theme];
};
tell("first");
const before = document.getElementById("hellaswag")._fullLayout.yaxis.range;
for (const id of ["by-tokens", "log", "start", "dark"]) press(id);
const scores = document.getElementById("hellaswag");
told.scores = [before, scores._fullLayout.yaxis.range];
const input = document.getElementById("smoothing");
input.value = 10;
input.dispatchEvent(new Event("input"));
document.querySelector("#loss-legend button").click();
tell("then");
const line = loss._fullData.find(t => t.visible && t.mode === "lines" && t.fill === "none");
told.smooth = [line.y[0], line.y[20]];
const plane = loss.querySelector(".nsewdrag"), box = plane.getBoundingClientRect();
const at = { bubbles: true, clientX: box.left + box.width / 2, clientY: box.top + 50 };
for (const kind of ["mouseover", "mousemove"]) plane.dispatchEvent(new MouseEvent(kind, at));
state.tokens = false;
draw({ ...FIGURES[1], traces: FIGURES[1].traces.map(t => ({ ...t, x: t.x.slice(0, 3), y: t.y.slice(0, 3) })) });
told.ticks = document.getElementById("lr")._fullLayout.xaxis._vals.map(tick => tick.x);
const output = Object.assign(document.createElement("output"), { id: "told", textContent: JSON.stringify(told) });
document.body.append(output);
}</script></body>"""


@needs_chromium
def test_a_browser_draws_it(make: Callable, tmp_path: Path) -> None:
    """In headless Chromium: a real run and one made by hand, without an error, and a picture that shows them."""
    import matplotlib.image

    torch.set_num_threads(1)
    real = train(tiny.config(tmp_path, steps=12)).run.folder
    write(tmp_path, real, make("other", steps=12))
    page = (tmp_path / "report.html").as_uri()
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    shown = browser(profile, f"--screenshot={tmp_path / 'page.png'}", "--window-size=1200,1400", "--dump-dom", page)
    assert "CONSOLE" not in shown.stderr, shown.stderr
    dom = shown.stdout or browser(profile, "--dump-dom", page).stdout
    drawn = dict(re.findall(r'<div class="plot[ "][^>]*id="(\w+)"(.*?)(?=<div class="plot[ "]|<h2>)', dom, re.DOTALL))
    assert list(drawn) == ["loss", "lr", "norm", "speed", "mfu", "hellaswag"]
    # In the loss: range, mean and validation of both runs, and the events of one.
    assert drawn["loss"].count('class="trace scatter') == 7 and drawn["lr"].count('class="trace scatter') == 2
    picture = matplotlib.image.imread(tmp_path / "page.png")
    blue, orange = ([0.184, 0.498, 0.816], [0.878, 0.412, 0.180])
    for colour in (blue, orange):
        assert (abs(picture[:, :, :3] - colour).max(axis=2) < 0.02).sum() > 300, "the runs' lines are to be seen"


@needs_chromium
def test_its_buttons_work(make: Callable, tmp_path: Path) -> None:
    """Tokens for steps, logarithmic, the whole range, dark, a curve hidden, smoothing; and what the pointer is told."""
    sizes = {"steps": 100, "batch_size": 2, "context": 16}
    html = write(tmp_path, make("a<i>b", **sizes), make("other", **sizes))
    (tmp_path / "pressed.html").write_text(html.replace("</body>", PRESSED))
    shown = browser(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "pressed.html").as_uri())
    assert "CONSOLE" not in shown.stderr, shown.stderr
    told = json.loads(re.search(r'<output id="told">(.*?)</output>', shown.stdout)[1])
    steps, linear, highest, curves, theme = told["first"]
    assert (steps, linear, curves, theme) == (pytest.approx(101), "linear", 8, "light") and 4 < highest < 11
    tokens, log, most, rest, theme = told["then"]
    assert (tokens, log, rest, theme) == (pytest.approx(101 * 2 * 16), "log", 6, "dark") and 10**most > 11
    # The mean over five steps on either side of step 21, a quarter of its index.
    expected = sum(9 / step + 2 for step in range(16, 27)) / 11
    assert told["smooth"] == pytest.approx([11, expected], abs=1e-4)
    (low, high), (lowest, highest) = told["scores"]  # of scores that are all 0.27, and of those that are known, too
    assert (
        0.26 < low < 0.27 < high < 0.28 and lowest < 0.25 and highest > max(value.acc_norm for value in known.HELLASWAG)
    )
    assert told["ticks"] == [0, 1, 2, 3]
    hover = re.search(r'<g class="hoverlayer">(.*?)</svg>', shown.stdout, re.DOTALL)[1]
    told = ["1600", "other: training : 2.1827", "a&lt;i&gt;b: validation : 2.68", "other: validation : 2.68"]
    assert re.findall(r">([^<>]+)<", hover) == told
