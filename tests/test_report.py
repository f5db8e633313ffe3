"""The report: what it holds, what it refuses, and what a browser makes of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from gpt2c.cli import main
from gpt2c.commands.report import names
from gpt2c.errors import UserError
from gpt2c.evaluation import known
from gpt2c.report.figures import MOST_POINTS, figures, smoothed, thinned
from gpt2c.report.read import read_run
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
    assert re.search(r'class="differs"><td>lr</td>\s*<td>0.001</td><td>0.5</td>', shown)
    assert not re.search(r'class="differs"><td>steps</td>', shown)
    assert "<script>alert" not in html and "&lt;script&gt;alert(2)&lt;/script&gt;" in shown
    assert not re.findall(r'<(?:link|script|img|iframe)[^>]*(?:src|href)="(?!data:)', html)


def test_known_curves_stand_beside_gpt2s_tokens_only(make: Callable) -> None:
    for tokenizer, shown in (("gpt2", True), ("bytes", False)):
        run = read_run(make(tokenizer, tokenizer=tokenizer, batch_size=8, context=1024), tokenizer)
        loss = figures([run])[0]
        kinds = {trace["kind"] for trace in loss["traces"]}
        assert ({"known", "level"} <= kinds) is shown
        if shown:
            (curve,) = (trace for trace in loss["traces"] if trace["kind"] == "known")
            assert curve["y"] == [value.loss for value in known.LOSSES if value.step]
            assert [x * 8192 for x in curve["x"]] == pytest.approx([v.tokens for v in known.LOSSES if v.step])
            assert "classic FineWeb" in curve["name"]


def test_events_lie_on_the_loss(make: Callable) -> None:
    traces = figures([read_run(make("run"), "run")])[0]["traces"]
    (events,) = (trace for trace in traces if trace["kind"] == "events")
    assert events["x"] == [20] and events["y"] == [pytest.approx(9 / 20 + 2)]
    assert events["text"][0].startswith("rollback: the loss is nan")


def test_long_curves_keep_their_extremes() -> None:
    pairs = [(i, 1.0) for i in range(20_000)]
    pairs[7777], pairs[12345] = (7777, 50.0), (12345, -50.0)
    kept = thinned(pairs)
    assert len(kept) <= MOST_POINTS + 2 and {(7777, 50.0), (12345, -50.0)} <= set(kept)
    assert kept == sorted(kept) and thinned(pairs[:100]) == pairs[:100]


def test_the_smoothed_curve() -> None:
    assert smoothed([(1, 2.0), (2, float("nan")), (3, 2.0)]) == [(1, 2.0), (2, 2.0), (3, 2.0)]
    many = smoothed([(i, float(i % 2)) for i in range(1000)])
    assert many[-1][1] == pytest.approx(0.5, abs=0.05) and smoothed([]) == []


def test_a_run_that_is_still_going(make: Callable) -> None:
    folder = make("run")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 41, "lo')
    assert read_run(folder, "run").last_step == 40
    for name in ("metrics.jsonl", "samples.txt"):
        (folder / name).unlink()
    assert read_run(folder, "run").last_step == 0


def test_damaged_and_missing_files(make: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = make("run")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:3], "{", *lines[3:]]))
    with pytest.raises(UserError, match="metrics.jsonl, line 4 is damaged: expected a JSON object with a step"):
        read_run(folder, "run")
    (folder / "run.json").write_text("{}")
    with pytest.raises(UserError, match="run.json is damaged"):
        read_run(folder, "run")
    for args in (["report", str(tmp_path / "no")], ["report"]):
        assert main(args) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_names_tell_runs_apart() -> None:
    assert names((Path("/a/x"), Path("/a/y"))) == ["x", "y"]
    assert names((Path("/a/x"), Path("/b/x"))) == ["a/x", "b/x"]
    assert names((Path("/a/x"), Path("/a/x"))) == ["x", "x"]


def test_without_the_packages(make: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert main(["report", str(make("run"))]) == 2
    assert 'needs the packages plotly and jinja2: pip install "gpt2c[report]"' in capsys.readouterr().err


def browser(*args: str) -> subprocess.CompletedProcess[str]:
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
    quiet += ("--disable-component-update", "--disable-sync", "--disable-quic", "--host-resolver-rules=MAP * ~NOTFOUND")
    command = ["chromium", *quiet, "--virtual-time-budget=3000", "--enable-logging=stderr", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed (Debian: apt install chromium)")
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
    # In the loss: each step, smoothed and validation of both runs, and the events of one.
    assert drawn["loss"].count('class="trace scatter') == 7 and drawn["lr"].count('class="trace scatter') == 2
    picture = matplotlib.image.imread(tmp_path / "page.png")
    blue, orange = ([0.184, 0.471, 0.769], [0.851, 0.384, 0.169])
    for colour in (blue, orange):
        assert (abs(picture[:, :, :3] - colour).max(axis=2) < 0.02).sum() > 300, "the runs' lines are to be seen"
