"""The report's curves as plain data, which the page's script gives to plotly.js.

A figure has an id, a title, a unit, whether it can be logarithmic, whether it has a legend, and traces. Every trace has
a kind, a name and a colour: the number of its run, -1 for known values. By kind:

    range    x, least, greatest: what each step gave, pale
    line     x, y; smooth: whether the page's smoothing applies
    marks    x, y, text: evaluations
    events   x, y, text, event: skips, rollbacks, resumes and stops
    known    x, y: values of the field by tokens trained
    level    y: a value of the field

x counts steps of `tokens` tokens each.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

from gpt2c.evaluation import known
from gpt2c.report.read import RunData
from gpt2c.report.thin import Pairs, Pieces, pieces

Trace = dict[str, Any]
Figure = dict[str, Any]
KNOWN = -1


def figures(runs: Sequence[RunData]) -> list[Figure]:
    """What is drawn, one after the other; a figure for which no run has values is left out."""
    norms = [*_noisy(runs, "grad_norm"), *_events(runs, "grad_norm")]
    found = [
        _figure("loss", "Loss", "cross-entropy, nats per token", _loss(runs), log=True, legend=True),
        _figure("lr", "Learning rate", "", _learning_rate(runs), log=True),
        _figure("norm", "Gradient norm", "L2, before clipping", norms, log=True),
        _figure("speed", "Throughput", "tokens per second", _noisy(runs, "tok_per_s")),
        _figure("mfu", "Model FLOPs utilisation", "share of the device's peak", _mfu(runs)),
        _figure("hellaswag", "HellaSwag", "acc_norm, completion style", _hellaswag(runs), legend=True),
    ]
    return [figure for figure in found if any(trace["colour"] != KNOWN for trace in figure["traces"])]


def _figure(id: str, title: str, unit: str, traces: list[Trace], log: bool = False, legend: bool = False) -> Figure:
    return {"id": id, "title": title, "unit": unit, "log": log, "legend": legend, "traces": traces}


def _loss(runs: Sequence[RunData]) -> list[Trace]:
    val = [
        _trace(run, i, "marks", f"{run.name}: validation", *_columns(run.series["val_loss"]))
        for i, run in enumerate(runs)
        if run.series["val_loss"]
    ]
    return [*_noisy(runs, "loss", ": training"), *val, *_events(runs, "loss"), *_known_losses(runs)]


def _learning_rate(runs: Sequence[RunData]) -> list[Trace]:
    curves = [(i, run, pieces(run.series["lr"])) for i, run in enumerate(runs)]
    return [_trace(run, i, "line", run.name, curve.x, curve.mean, smooth=False) for i, run, curve in curves if curve.x]


def _noisy(runs: Sequence[RunData], key: str, what: str = "") -> list[Trace]:
    """Of each run the range of what each step gave, and its mean, to be smoothed."""
    traces = []
    for i, run in enumerate(runs):
        curve = pieces(run.series[key])
        if curve.x:
            traces += [_range(run, i, run.name + what, curve), _mean(run, i, run.name + what, curve)]
    return traces


def _mfu(runs: Sequence[RunData]) -> list[Trace]:
    curves = [(i, run, pieces(run.utilisation)) for i, run in enumerate(runs)]
    return [_mean(run, i, run.name, curve) for i, run, curve in curves if curve.x]


def _hellaswag(runs: Sequence[RunData]) -> list[Trace]:
    traces = []
    for i, run in enumerate(runs):
        acc, items = dict(run.series["hellaswag_acc"]), dict(run.series["hellaswag_items"])
        x, y = _columns(run.series["hellaswag_acc_norm"])
        words = [f"acc {acc.get(step, float('nan')):.4f}, {items.get(step, 0):,.0f} items" for step in x]
        if x:
            traces.append(_trace(run, i, "marks", run.name, x, y, text=words))
    levels = [_level(f"{value.model}, all 10,042 items", value.acc_norm) for value in known.HELLASWAG]
    return [*traces, *levels, _level("guessing", 0.25)]


def _known_losses(runs: Sequence[RunData]) -> list[Trace]:
    """The field's levels and curve, where a run has GPT-2's vocabulary: losses of other tokens do not compare.

    The curve is by tokens trained; its steps are those in which the first such run trains on as many.
    """
    run = next((run for run in runs if run.settings.get("tokenizer") == "gpt2"), None)
    if run is None:
        return []
    levels = [_level(_known_name(value), value.loss) for value in known.LOSSES if value.tokens is None]
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for value in known.LOSSES:
        if value.tokens is not None:
            x, y = curves.setdefault(_known_name(value), ([], []))
            x.append(value.tokens / run.tokens_per_step)
            y.append(value.loss)
    return [*levels, *(_trace(run, KNOWN, "known", name, x, y) for name, (x, y) in curves.items())]


def _known_name(value: known.KnownLoss) -> str:
    return f"{value.model}, {value.dataset.split(',')[0]}"


def _level(name: str, y: float) -> Trace:
    return {"kind": "level", "name": name, "colour": KNOWN, "y": y}


def _events(runs: Sequence[RunData], key: str) -> list[Trace]:
    """Marks on the finite value of the step, or of the one before it, or else of the first."""
    traces = []
    for i, run in enumerate(runs):
        curve = pieces(run.series[key], most=max(1, len(run.series[key])))
        if not (curve.x and run.events):
            continue
        y = [curve.mean[max(0, bisect.bisect_right(curve.x, event.step) - 1)] for event in run.events]
        words = [f"{event.name}: {event.reason}" for event in run.events]
        names, x = [event.name for event in run.events], [event.step for event in run.events]
        traces.append(_trace(run, i, "events", f"{run.name}: events", x, y, text=words, event=names))
    return traces


def _range(run: RunData, colour: int, name: str, curve: Pieces) -> Trace:
    least, greatest = _rounded(curve.least), _rounded(curve.greatest)
    return {**_trace(run, colour, "range", name, curve.x, []), "least": least, "greatest": greatest}


def _mean(run: RunData, colour: int, name: str, curve: Pieces) -> Trace:
    return _trace(run, colour, "line", name, curve.x, curve.mean, smooth=True)


def _trace(run: RunData, colour: int, kind: str, name: str, x: list[Any], y: list[float], **more: Any) -> Trace:
    steps = {"tokens": run.tokens_per_step, "x": x, "y": _rounded(y)}
    return {"kind": kind, "name": name, "colour": colour, **steps, **more}


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def _columns(pairs: Pairs) -> tuple[list[int], list[float]]:
    return [step for step, _ in pairs], [value for _, value in pairs]
