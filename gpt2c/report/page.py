"""The page: figures, tables and samples in one HTML file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import resources
from typing import Any

from gpt2c.errors import UserError
from gpt2c.report.figures import MOST_POINTS, figures, smoothed
from gpt2c.report.read import RunData

MOST_SAMPLES = 20  # of a run, the first and the latest among them


def page(runs: Sequence[RunData]) -> str:
    """The HTML. UserError without the packages that make it."""
    try:
        from jinja2 import Environment
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError('a report needs the packages plotly and jinja2: pip install "gpt2c[report]"') from error
    template = (resources.files("gpt2c") / "report" / "page.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template).render(
        runs=[_card(run) for run in runs],
        figures=figures(runs),
        thinned=any(len(run.series["loss"]) > MOST_POINTS for run in runs),
        most_points=MOST_POINTS,
        tables=[
            ("Settings", _compared(runs, lambda run: run.settings)),
            ("Machine and versions", _compared(runs, _machine)),
            ("Data", _compared(runs, lambda run: run.record.get("data", {}))),
        ],
        events=[(run.name, event) for run in runs for event in run.events],
        samples=[(run.name, _chosen(run.samples)) for run in runs if run.samples],
        plotly=get_plotlyjs(),
        date=time.strftime("%Y-%m-%d %H:%M"),
    )  # fmt: skip


def _card(run: RunData) -> dict[str, Any]:
    """A run in a few numbers."""
    loss, val, rate = smoothed(run.series["loss"]), run.series["val_loss"], smoothed(run.series["tok_per_s"])
    facts = {"parameters": f"{run.record['parameters']:,}"} if "parameters" in run.record else {}
    facts["steps"] = f"{run.last_step:,} of {run.settings.get('steps', 0):,}"
    facts["tokens"] = _short(run.last_step * run.tokens_per_step)
    if loss:
        facts["training loss"] = f"{loss[-1][1]:.4f}"
    if val:
        step, best = min(val, key=lambda pair: pair[1])
        facts["best validation loss"] = f"{best:.4f} (step {step:,})"
    if run.series["hellaswag_acc_norm"]:
        facts["HellaSwag acc_norm"] = f"{run.series['hellaswag_acc_norm'][-1][1]:.4f}"
    if rate:
        facts["tokens a second"] = f"{rate[-1][1]:,.0f}"
        if run.record.get("peak_flops") and run.record.get("flops_per_token"):
            facts["MFU"] = f"{rate[-1][1] * run.record['flops_per_token'] / run.record['peak_flops']:.1%}"
    facts["time"] = _duration(run.seconds)
    return {"name": run.name, "facts": facts}


def _machine(run: RunData) -> dict[str, Any]:
    record = run.record
    versions = {"gpt2c": record.get("gpt2c"), "threads": record.get("threads"), "peak FLOP/s": record.get("peak_flops")}
    return {**versions, **record.get("machine", {})}


def _compared(runs: Sequence[RunData], facts: Any) -> list[dict[str, Any]]:
    """A row for each name that any run has; `differs` where the runs do not agree."""
    found = [facts(run) for run in runs]
    names = list(dict.fromkeys(name for one in found for name in one))
    rows = []
    for name in names:
        values = ["" if one.get(name) is None else str(one[name]) for one in found]
        rows.append({"name": name, "values": values, "differs": len(set(values)) > 1})
    return rows


def _chosen(samples: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """Evenly over the run, the latest first."""
    count = min(len(samples), MOST_SAMPLES)
    picked = {round(i * (len(samples) - 1) / max(1, count - 1)) for i in range(count)}
    return [samples[i] for i in sorted(picked, reverse=True)]


def _short(count: float) -> str:
    for size, unit in ((1e9, "billion"), (1e6, "million")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count:,.0f}"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"
