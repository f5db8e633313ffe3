"""What the pictures share: one look, one colour for each side, PNG without a display."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from gpt2c.bench.case import COMPILED, OURS, RECOMPUTING

COLOURS = {
    OURS: "#08519c", RECOMPUTING: "#6baed6", "torch": "#d94801", COMPILED: "#fdae6b", "T x T matrix": "#969696",
    f"{OURS} fp32": "#08519c", f"{OURS} bf16": "#4292c6", f"{OURS} int8": "#9ecae1",
    "measured": "#08519c", "floor": "#bdbdbd",
    "transformers fp32": "#d94801", "ctranslate2 fp32": "#238b45", "ctranslate2 int8": "#a1d99b",
}  # fmt: skip
Pictures = dict[str, Callable[[], bytes]]  # what draws a PNG, by its file's name
FLOOR = {"color": "#525252", "linestyle": "--", "linewidth": 1.0}


def panels(count: int, size: tuple[float, float]) -> tuple[Any, Sequence[Any]]:
    """A figure with so many axes beside each other, each of `size` inches."""
    # Imported here: it takes most of a second, which benchmarks without pictures need not wait for.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * count, size[1]), dpi=110, layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for ax in axes:
        ax.grid(color="#e6e6e6", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def png(figure: Any, title: str, facts: dict[str, str]) -> bytes:
    """Drawn, with what it was measured on above."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    where = f"{facts['processor']}\n{facts['threads']} threads, {facts['kernels']}, torch {facts['torch']}"
    figure.suptitle(f"{title}\n{where}", fontsize=9)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return out.getvalue()


def line(ax: Any, points: Sequence[tuple[float, float]], side: str) -> None:
    """A side's measurements, in its colour."""
    ax.plot(*zip(*points, strict=True), marker="o", markersize=4, label=side, color=COLOURS.get(side, "#31a354"))


def legend_below(figure: Any, ax: Any) -> None:
    """The legend of `ax` for the whole figure, where no bar can lie under it."""
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def count_axis(ax: Any, values: Sequence[float], label: str) -> None:
    """A logarithmic x axis whose marks are the measured values."""
    ax.set_xscale("log")
    ax.set_xticks(list(values), [f"{value:.0f}" if value >= 10 else f"{value:.2g}" for value in values])
    ax.minorticks_off()
    ax.set_xlabel(label)


def bars(ax: Any, names: Sequence[str], values: dict[str, Sequence[float | None]]) -> None:
    """Horizontal bars from top to bottom, a group for each name with a bar for each key of values."""
    height = 0.8 / max(1, len(values))
    for i, (side, row) in enumerate(values.items()):
        places = [n + (i - (len(values) - 1) / 2) * height for n in range(len(names))]
        ax.barh(places, [v or 0 for v in row], height, label=side, color=COLOURS.get(side, "#31a354"))
    ax.set_yticks(range(len(names)), names, fontsize=7)
    ax.invert_yaxis()
    ax.margins(y=0.01)
