"""The report's curves as plain data, which the page's script gives to plotly.js."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gpt2c.evaluation import known
from gpt2c.report.read import RunData

MOST_POINTS = 1500  # of a curve; beyond, the least and the greatest of each piece stand for it
SMOOTHING = 0.02  # share of a curve over which the weights of its running mean fall to a third
Pairs = Sequence[tuple[int, float]]


def figures(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """What is drawn, one after the other: title, axis and traces of each."""
    found = [
        _figure("loss", "Loss", "cross-entropy, nats per token", _loss(runs), log=True),
        _figure("lr", "Learning rate", "", _simple(runs, "lr")),
        _figure("norm", "Gradient norm", "L2, before clipping", _simple(runs, "grad_norm", smooth=True), log=True),
        _figure("speed", "Throughput", "tokens per second", _simple(runs, "tok_per_s", smooth=True)),
        _figure("mfu", "Model FLOPs utilisation", "share of the device's peak", _mfu(runs)),
        _figure("hellaswag", "HellaSwag", "acc_norm, completion style", _hellaswag(runs)),
    ]
    return [figure for figure in found if any(trace["kind"] != "level" for trace in figure["traces"])]


def _figure(id: str, title: str, unit: str, traces: list[dict[str, Any]], log: bool = False) -> dict[str, Any]:
    return {"id": id, "title": title, "unit": unit, "log": log, "traces": traces}


def _loss(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    traces = []
    for i, run in enumerate(runs):
        loss = run.series["loss"]
        traces.append(_trace(run, i, "faint", f"{run.name}: each step", loss))
        traces.append(_trace(run, i, "line", f"{run.name}: training", smoothed(loss)))
        traces.append(_trace(run, i, "marks", f"{run.name}: validation", run.series["val_loss"]))
        traces.append(_events(run, i, loss))
    return [trace for trace in traces if trace["y"]] + _known_losses(runs)


def _simple(runs: Sequence[RunData], key: str, smooth: bool = False) -> list[dict[str, Any]]:
    traces = []
    for i, run in enumerate(runs):
        pairs = run.series[key]
        if smooth:
            traces.append(_trace(run, i, "faint", f"{run.name}: each step", pairs))
        traces.append(_trace(run, i, "line", run.name, smoothed(pairs) if smooth else pairs))
    return [trace for trace in traces if trace["y"]]


def _mfu(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    traces = []
    for i, run in enumerate(runs):
        flops, peak = run.record.get("flops_per_token"), run.record.get("peak_flops")
        if flops and peak:
            shares = [(step, rate * flops / peak) for step, rate in smoothed(run.series["tok_per_s"])]
            traces.append(_trace(run, i, "line", run.name, shares))
    return [trace for trace in traces if trace["y"]]


def _hellaswag(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    traces = [_trace(run, i, "marks", run.name, run.series["hellaswag_acc_norm"]) for i, run in enumerate(runs)]
    traces = [trace for trace in traces if trace["y"]]
    levels = [_level(f"{value.model}, all 10,042 items", value.acc_norm) for value in known.HELLASWAG]
    return traces + levels + [_level("guessing", 0.25)] if traces else []


def _known_losses(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """The field's curve and levels, where a run has GPT-2's vocabulary: losses of other tokens do not compare."""
    mine = next((run for run in runs if run.settings.get("tokenizer") == "gpt2"), None)
    if mine is None:
        return []
    curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
    traces = []
    for value in known.LOSSES:
        if value.tokens is None:
            traces.append(_level(f"{value.model}, {_set(value)}", value.loss))
        else:
            curves.setdefault((value.model, _set(value)), []).append((value.tokens / mine.tokens_per_step, value.loss))
    for (model, dataset), points in curves.items():
        trace = _trace(mine, 0, "known", f"{model}, {dataset}", points)
        traces.append({**trace, "colour": -1})
    return traces


def _set(value: known.KnownLoss) -> str:
    return value.dataset.split(",")[0]


def _level(name: str, y: float) -> dict[str, Any]:
    return {"kind": "level", "name": name, "y": [y], "x": [], "tokens": 0, "colour": -1}


def _events(run: RunData, colour: int, loss: Pairs) -> dict[str, Any]:
    """Marks on the loss of the step, or of the latest one before it."""
    at = dict(loss)
    steps = sorted(at)
    pairs, words = [], []
    for event in run.events:
        before = [step for step in steps if step <= event["step"]]
        if before:
            pairs.append((event["step"], at[before[-1]]))
            words.append(f"{event['event']}: {event.get('reason', '')}")
    return {**_trace(run, colour, "events", f"{run.name}: events", pairs), "text": words}


def _trace(run: RunData, colour: int, kind: str, name: str, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    pairs = thinned(pairs)
    return {
        "kind": kind, "name": name, "colour": colour, "tokens": run.tokens_per_step,
        "x": [step for step, _ in pairs],
        "y": [float(f"{value:.6g}") if math.isfinite(value) else None for _, value in pairs],
    }  # fmt: skip


def thinned(pairs: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most about so many points: of each piece of the curve its least and its greatest value, in their order."""
    if len(pairs) <= most:
        return list(pairs)
    size = math.ceil(2 * len(pairs) / most)
    kept = []
    for start in range(0, len(pairs), size):
        piece = range(start, min(start + size, len(pairs)))
        ends = {min(piece, key=lambda i: pairs[i][1]), max(piece, key=lambda i: pairs[i][1])}
        kept += [pairs[i] for i in sorted(ends)]
    return kept


def smoothed(pairs: Pairs) -> list[tuple[int, float]]:
    """The running mean with weights that fall exponentially, of the finite values."""
    keep = 1 - 1 / max(1.0, SMOOTHING * len(pairs))
    total = weight = 0.0
    found = []
    for step, value in pairs:
        if math.isfinite(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        if weight:
            found.append((step, total / weight))
    return found
