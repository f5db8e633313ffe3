"""The picture of `gpt2c bench generate`, from its report's results."""

from __future__ import annotations

from functools import partial

from gpt2c.bench.plots import Pictures, bars, legend_below, panels, png
from gpt2c.bench.report import Report


def draw(report: Report) -> Pictures:
    """The picture, if there are results."""
    return {"generate-sides.png": partial(sides, report, report.results)} if report.results else {}


def sides(report: Report, results: list[dict]) -> bytes:
    """Tokens a second of each side, new ones and the prompt's."""
    names = list(results[0]["sides"])
    what = [f"{r['batch']} x {r['prompt']} tokens" for r in results]
    figure, (new, prompt) = panels(2, (5, 1.4 + 0.9 * len(results)))
    bars(new, what, {n: [r["sides"][n]["tokens_per_s"] for r in results] for n in names})
    bars(prompt, what, {n: [r["sides"][n]["prompt_tokens_per_s"] for r in results] for n in names})
    new.set_xlabel("new tokens a second")
    prompt.set_xlabel("tokens of the prompt a second")
    prompt.set_yticks([])
    legend_below(figure, new)
    return png(figure, "Generation", report.machine)
