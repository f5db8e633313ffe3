"""The pictures of `gpt2c bench train`, from its report's results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from gpt2c.bench.plots import FLOOR, Pictures, bars, count_axis, legend_below, line, panels, png
from gpt2c.bench.report import Report


def draw(report: Report) -> Pictures:
    """One for each part that has results."""
    parts: dict[str, list[dict]] = {}
    for result in report.results:
        parts.setdefault(result["part"], []).append(result)
    drawn: Pictures = {}
    if "sizes" in parts:
        drawn["train-sides.png"] = partial(sides, report, parts["sizes"])
    if "threads" in parts:
        drawn["train-threads.png"] = partial(sides, report, parts["threads"])
    if "model" in parts:
        drawn["train-model.png"] = partial(curves, report, parts["model"], "parameters", "millions of parameters", 1e6)
    if "length" in parts:
        drawn["train-length.png"] = partial(curves, report, parts["length"], "T", "tokens, T", 1)
    return drawn


def sides(report: Report, results: list[dict]) -> bytes:
    """Tokens a second and peak memory of each side, as bars."""
    figure, (speed, memory) = panels(2, (5, 1.4 + 0.7 * len(results)))
    names = _names(results)
    what = [result["what"] for result in results]
    rates = {n: [_of(r, n, lambda s, r=r: r["tokens"] / s["seconds"]["median"]) for r in results] for n in names}
    bars(speed, what, rates)
    for i, result in enumerate(results):
        speed.vlines(result["tokens"] / result["floor"], i - 0.45, i + 0.45, label="floor" if i == 0 else None, **FLOOR)
    bars(memory, what, {n: [_of(r, n, lambda s: s["peak_beyond_imports"] / 1e6) for r in results] for n in names})
    speed.set_xlabel("tokens a second")
    memory.set_xlabel("peak memory beyond imports, MB")
    memory.set_yticks([])
    legend_below(figure, speed)
    return png(figure, "Training steps", report.machine)


def curves(report: Report, results: list[dict], key: str, label: str, unit: float) -> bytes:
    """Seconds a step, tokens a second and memory over what grows."""
    figure, axes = panels(3, (4.6, 4.2))
    measures = (
        ("seconds a step", lambda r, s: s["seconds"]["median"]),
        ("tokens a second", lambda r, s: r["tokens"] / s["seconds"]["median"]),
        ("peak memory beyond imports, MB", lambda r, s: s["peak_beyond_imports"] / 1e6),
    )
    x = [result[key] / unit for result in results]
    for ax, (name, measure) in zip(axes, measures, strict=True):
        for side in _names(results):
            points = [(r[key] / unit, measure(r, r["sides"][side])) for r in results if side in r["sides"]]
            line(ax, points, side)
        count_axis(ax, x, label)
        ax.set(ylabel=name, yscale="log")
    axes[0].plot(x, [r["floor"] for r in results], label="floor", **FLOOR)
    axes[1].plot(x, [r["tokens"] / r["floor"] for r in results], **FLOOR)
    axes[0].legend(frameon=False, fontsize=8)
    return png(figure, f"Training steps as the {'context' if key == 'T' else 'model'} grows", report.machine)


def _names(results: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result["sides"]))


def _of(result: dict, side: str, measure: Callable[[dict], float]) -> float | None:
    return measure(result["sides"][side]) if side in result["sides"] else None
