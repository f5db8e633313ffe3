"""The page: figures, tables and samples in one HTML file."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import Any

from gpt2c.errors import UserError
from gpt2c.evaluation import known
from gpt2c.report.figures import figures
from gpt2c.report.read import RunData
from gpt2c.report.thin import MOST_PIECES, recent

UNKNOWN = "unknown"  # a peak that is not listed, or was measured on a busy processor
MOST_SAMPLES = 20  # of a run, the first and the latest among them


def page(runs: Sequence[RunData]) -> str:
    """The HTML, which needs nothing besides itself. UserError without the packages that make it."""
    try:
        from jinja2 import Environment
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError('a report needs the packages plotly and jinja2: pip install "gpt2c[report]"') from error
    drawn = figures(runs)
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_file("page.html")).render(
        runs=[{"name": run.name, "facts": _facts(run)} for run in runs],
        figures=drawn,
        notes=_notes(drawn),
        most_pieces=MOST_PIECES if any(len(run.series["loss"]) > MOST_PIECES for run in runs) else None,
        tables=[
            ("Settings", _compared(runs, lambda run: run.settings)),
            ("Machine and versions", _compared(runs, _machine)),
            ("Data", _compared(runs, lambda run: run.record["data"])),
        ],
        events=[(run.name, i, event) for i, run in enumerate(runs) for event in run.events],
        samples=[(run.name, i, _chosen(run.samples)) for i, run in enumerate(runs) if run.samples],
        plotly=get_plotlyjs(),
        script=_file("page.js"),
        date=time.strftime("%Y-%m-%d %H:%M"),
    )  # fmt: skip


def _file(name: str) -> str:
    return (resources.files("gpt2c") / "report" / name).read_text(encoding="utf-8")


def _facts(run: RunData) -> dict[str, str]:
    """A run in a few numbers."""
    record, loss, val = run.record, recent(run.series["loss"]), run.series["val_loss"]
    facts = {"steps": f"{run.last_step:,} of {run.settings['steps']:,}"}
    facts["tokens"] = _short(run.last_step * run.tokens_per_step)
    if record.get("parameters"):
        facts["parameters"] = _short(record["parameters"])
    if loss is not None:
        facts["training loss, latest"] = f"{loss:.4f}"
    if val:
        step, best = min(val, key=lambda pair: pair[1])
        facts["validation loss, best"] = f"{best:.4f}"
        facts["at step"] = f"{step:,}"
    if run.series["hellaswag_acc_norm"]:
        facts["HellaSwag, latest"] = f"{run.series['hellaswag_acc_norm'][-1][1]:.4f}"
    if run.series["tok_per_s"]:
        rate = statistics.median(rate for _, rate in run.series["tok_per_s"])
        facts["tokens per second"] = f"{rate:,.0f}"
        if record.get("flops_per_token"):
            shares = [share for _, share in run.utilisation]
            facts["MFU"] = f"{statistics.median(shares):.1%}" if shares else UNKNOWN
    return {**facts, "time": _duration(run.seconds)}


def _notes(drawn: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Below a figure: what its dashed lines are, if it has any."""
    dashed = {figure["id"] for figure in drawn if any(t["kind"] in ("known", "level") for t in figure["traces"])}
    losses = "; ".join(dict.fromkeys(value.source for value in known.LOSSES))
    scores = "; ".join(dict.fromkeys(value.source for value in known.HELLASWAG))
    far = "Those far from the runs' own are on the scale of `whole range`."
    notes = {
        "loss": f"Dashed: known validation losses of the field, at equal tokens trained. They were measured on the "
        f"first 10 * 2^20 tokens of the validation shard of the set that the legend names, and compare only with a run "
        f"that is validated on the same. {far} Sources: {losses}.",
        "hellaswag": f"Dashed: known scores of the field in the same style. {far} Source: {scores}.",
    }
    return {id: note for id, note in notes.items() if id in dashed}


def _machine(run: RunData) -> dict[str, Any]:
    record = run.record
    facts = {"gpt2c": record.get("gpt2c"), "threads": record.get("threads"), **record["machine"]}
    return {**facts, "peak": f"{run.peak / 1e12:,.2f} TFLOP/s" if run.peak else UNKNOWN}


def _compared(runs: Sequence[RunData], facts: Callable[[RunData], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each name that any run has; those in which the runs do not agree come first."""
    found = [facts(run) for run in runs]
    names = list(dict.fromkeys(name for one in found for name in one))
    rows = []
    for name in names:
        values = [_text(one.get(name)) for one in found]
        rows.append({"name": name, "texts": values, "differs": len(set(values)) > 1})
    return sorted(rows, key=lambda row: not row["differs"])


def _text(value: Any) -> str:
    """A value as a TOML file or a reader would have it."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


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
    if hours:
        return f"{hours:,} h {rest // 60} min"
    return f"{rest // 60} min {rest % 60} s" if rest >= 60 else f"{rest} s"
