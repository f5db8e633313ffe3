"""Cross-attention as a picture: target tokens down, source tokens across, dark where the model looked."""

from __future__ import annotations

import io
from collections.abc import Sequence

from gpt2c.translator import Attention


def alignment_picture(attentions: Sequence[Attention]) -> bytes:
    """A PNG with a panel for each translation: the mean over all layers and heads."""
    # Imported here: it takes most of a second, which a translation need not wait for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    widths = [len(attention.source) for attention in attentions]
    figure = Figure(figsize=(0.42 * sum(widths) + 1.4 * len(widths), 4.6), dpi=110, layout="constrained")
    for axes, attention in zip(figure.subplots(1, len(widths), width_ratios=widths), attentions, strict=True):
        axes.imshow(attention.alignment().numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(attention.source)), attention.source, rotation=50, ha="left", rotation_mode="anchor")
        axes.set_yticks(range(len(attention.target)), attention.target)
        axes.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
        axes.spines[:].set_color("#bdbdbd")
        axes.set_xticks([i + 0.5 for i in range(len(attention.source))], minor=True)
        axes.set_yticks([i + 0.5 for i in range(len(attention.target))], minor=True)
        axes.grid(which="minor", color="#e6e6e6", linewidth=0.5)
        axes.tick_params(which="minor", length=0, top=False, bottom=False, left=False)
    png = io.BytesIO()
    FigureCanvasAgg(figure).print_png(png)
    return png.getvalue()
