"""The picture of a run: training and validation loss over steps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np


def loss_curve(rows: Sequence[Mapping[str, float]]) -> bytes:
    """A PNG of the rows of metrics.jsonl: `loss` as it was and smoothed, `val_loss` as marks, the best one written."""
    # Imported here: it takes most of a second, which `gpt2c sample` need not wait for. The Agg canvas needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    train = np.array([(row["step"], row["loss"]) for row in rows if "loss" in row], dtype=float).reshape(-1, 2)
    val = np.array([(row["step"], row["val_loss"]) for row in rows if "val_loss" in row], dtype=float).reshape(-1, 2)
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*train.T, color="#9ecae1", linewidth=0.8, label="training, each step")
    axes.plot(*_smoothed(train).T, color="#08519c", linewidth=1.8, label="training, smoothed")
    if len(val):
        axes.plot(*val.T, color="#d94801", linewidth=1.2, marker="o", markersize=4, label="validation")
        step, loss = val[val[:, 1].argmin()]
        axes.annotate(
            f"best validation {loss:.3f}\nat step {step:.0f}",
            (step, loss),
            xytext=(0, 26),
            textcoords="offset points",
            ha="right",
            color="#a63603",
            arrowprops={"arrowstyle": "-", "color": "#a63603", "linewidth": 0.8},
        )
    axes.set(xlabel="step", ylabel="cross-entropy loss (nats per token)", title="Training of a GPT-2 with gpt2c")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return png.getvalue()


def _smoothed(train: np.ndarray) -> np.ndarray:
    """The mean of each point's neighbourhood, 1/25 of the curve wide."""
    width = max(1, len(train) // 25)
    if not len(train):
        return train
    kernel = np.ones(width)
    weight = np.convolve(np.ones(len(train)), kernel, mode="same")
    return np.column_stack([train[:, 0], np.convolve(train[:, 1], kernel, mode="same") / weight])
