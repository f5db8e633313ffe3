#!/usr/bin/env python3
"""The pictures of docs/guide, made by the code that they are about.

    python python/guide_pictures.py                        all of them, into docs/images; about three minutes
    python python/guide_pictures.py --only mask --only training

Chapter 4's is drawn by a translator that is trained here (translate.py); chapter 5's shows the benchmarks' record in
docs/bench; chapter 6's the runs of guide_runs.py.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import translate
import tyro
from cuda_compile import ROOT
from guide_runs import RUNS, losses
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from translate_picture import alignment_picture

IMAGES = ROOT / "docs" / "images"
BLUE, ORANGE, GREY = "#08519c", "#d94801", "#969696"


@dataclass(frozen=True)
class Args:
    """Draw the guide's pictures."""

    only: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Names of pictures; all if none is given."""


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def panels(count: int, size: tuple[float, float]) -> tuple[Figure, list[Any]]:
    """A figure with so many axes beside each other, each of `size` inches."""
    figure = Figure(figsize=(size[0] * count, size[1]), dpi=110, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.14)  # for labels that stand aslant
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def draw_matrix(
    axes: Any, matrix: torch.Tensor, rows: list[str], columns: list[str], title: str, **colours: Any
) -> None:
    """A heat map with its numbers written in."""
    axes.imshow(matrix.numpy(), **{"cmap": "Blues", "vmin": 0, "vmax": 1, **colours})
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, labeltop=True, labelbottom=False, top=False, bottom=False)
    for i, row in enumerate(matrix.tolist()):
        for j, value in enumerate(row):
            if value == value and abs(value) != float("inf"):
                dark = value > 0.6 * colours.get("vmax", 1)
                axes.text(
                    j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if dark else "black"
                )
    axes.set_xlabel(title)
    axes.spines[:].set_visible(False)


def snippets(chapter: str, upto: str) -> dict[str, Any]:
    """The names that a chapter's snippets have made when one of them holds the line `upto`."""
    names: dict[str, Any] = {"print": lambda *_: None}
    for block in (ROOT / "docs" / "guide" / f"{chapter}.md").read_text(encoding="utf-8").split("```python\n")[1:]:
        code = block.split("```")[0]
        exec(code, names)
        if upto in code:
            return names
    raise AssertionError(f"no snippet of {chapter} holds {upto!r}")


def next_words() -> bytes:
    """Chapter 1: what its tiny model says after each word."""
    names = snippets("1-tokens", "by_model, _ = model(idx)")
    words = "the cat sat on the".split()
    figure, (axes,) = panels(1, (7.2, 3.9))
    rows = [f"{' '.join(words[: i + 1])} ..." for i in range(len(words))]
    draw_matrix(axes, names["by_model"][0].softmax(-1), rows, names["vocabulary"], "probability of the next token")
    return png(figure)


def attention() -> bytes:
    """Chapter 2: the shares of its six words; and how sharp a softmax starts, with and without the scaling."""
    names = snippets("2-self-attention", "O = P @ V")
    figure, (left, right) = panels(2, (5.2, 4.2))
    draw_matrix(left, names["P"], names["words"], names["words"], "row: who asks, column: who is looked at")
    torch.manual_seed(0)
    widths = [2**n for n in range(1, 11)]
    for scaled, colour in ((False, ORANGE), (True, BLUE)):
        sharp = []
        for d in widths:
            q, k = torch.randn(1000, d), torch.randn(1000, 16, d)
            s = torch.einsum("nd,nkd->nk", q, k) / (d**0.5 if scaled else 1)
            sharp.append(float(s.softmax(-1).amax(-1).mean()))
        name = "divided by the root of d" if scaled else "as they are"
        right.plot(widths, sharp, color=colour, marker="o", markersize=4, label=f"scores {name}")
    right.set(xscale="log", ylim=(0, 1.02), xlabel="d, numbers of a query", ylabel="largest of 16 shares, mean")
    right.legend(frameon=False)
    finish(right)
    return png(figure)


def mask() -> bytes:
    """Chapter 3: scores, what the mask leaves, shares."""
    torch.manual_seed(3)
    words = "the cat sat on the mat".split()
    q, k = torch.randn(6, 16), torch.randn(6, 16)
    scores = q @ k.T / 4
    masked = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), float("-inf"))
    figure, axes = panels(3, (4.1, 4.2))
    diverging = {"cmap": "PuOr", "vmin": -2.5, "vmax": 2.5}
    draw_matrix(axes[0], scores, words, words, "scores", **diverging)
    draw_matrix(axes[1], masked, words, words, "the future hidden", **diverging)
    draw_matrix(axes[2], masked.softmax(-1), words, words, "shares: each row sums to 1")
    return png(figure)


def alignment() -> bytes:
    """Chapter 4: the picture that translate.py draws of a translator it has trained."""
    translator = translate.train(translate.Args().settings())
    return alignment_picture([translator.attention(text) for text in translate.SHOWN])


def lengths() -> bytes:
    """Chapter 5: time and memory of causal attention over the context, from the benchmarks' record."""
    record = json.loads((ROOT / "docs" / "bench" / "kernels.json").read_text(encoding="utf-8"))
    rows = [row for row in record["results"] if row["part"] == "lengths" and row["way"] == "forward"]
    memory = [row for row in record["results"] if row["part"] == "memory"]
    figure, (left, right) = panels(2, (5.2, 3.9))
    sides = {"T x T matrix": ("plain PyTorch", GREY), "torch": ("PyTorch's kernel", ORANGE), "gpt2c": ("gpt2c", BLUE)}
    for side, (name, colour) in sides.items():
        style = {"color": colour, "marker": "o", "markersize": 4, "label": name}
        times = [(row["T"], row["seconds"][side]["median"] * 1e3) for row in rows]
        peaks = [(row["T"], row["peak_bytes"][side] / 1e6) for row in memory]
        left.plot(*zip(*times, strict=True), **style)
        right.plot(*zip(*peaks, strict=True), **style)
    left.set(xscale="log", yscale="log", xlabel="T, tokens", ylabel="ms, forward")
    right.set(xscale="log", yscale="log", xlabel="T, tokens", ylabel="peak MB, forward and backward")
    for axes in (left, right):
        axes.set_xticks([64, 256, 1024, 4096], ["64", "256", "1024", "4096"])
        axes.minorticks_off()
        finish(axes)
    left.legend(frameon=False)
    return png(figure)


def training() -> bytes:
    """Chapter 6: loss curves of runs that are right and wrong, each beside the right one."""
    torch.set_num_threads(1)
    curves = {name: losses(run) for name, run in RUNS.items()}
    right, *wrong = curves
    figure = Figure(figsize=(11, 6.4), dpi=110, layout="constrained")
    for axes, name in zip(figure.subplots(2, 3, sharex=True, sharey=True).flat, wrong, strict=True):
        axes.plot(curves[right], color=BLUE, linewidth=1, label=right)
        axes.plot(curves[name], color=ORANGE, linewidth=1, label=name)
        axes.set(ylim=(1.8, 6.5))
        axes.legend(frameon=False, loc="upper right")
        finish(axes)
    figure.supxlabel("step")
    figure.supylabel("loss, nats per byte")
    return png(figure)


def finish(axes: Any) -> None:
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


PICTURES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "next": ("guide-1-next.png", next_words),
    "attention": ("guide-2-attention.png", attention),
    "mask": ("guide-3-mask.png", mask),
    "alignment": ("guide-4-alignment.png", alignment),
    "lengths": ("guide-5-attention.png", lengths),
    "training": ("guide-6-training.png", training),
}


def main() -> None:
    args = tyro.cli(Args)
    for name in args.only or PICTURES:
        file, draw = PICTURES[name]
        (IMAGES / file).write_bytes(draw())
        print(IMAGES / file)


if __name__ == "__main__":
    main()
