"""The picture of `gpt2c bench generate`, from its report's results."""

from __future__ import annotations

from gpt2c.bench.plots import bars, legend_below, panels, png
from gpt2c.bench.report import Report


def draw(report: Report) -> dict[str, bytes]:
    """Tokens a second of each side, new ones and the prompt's, by file name."""
    results = report.results
    names = list(results[0]["sides"])
    what = [f"{r['batch']} x {r['prompt']} tokens" for r in results]
    figure, (new, prompt) = panels(2, (5, 1.4 + 0.9 * len(results)))
    bars(new, what, {n: [r["sides"][n]["tokens_per_s"] for r in results] for n in names})
    bars(prompt, what, {n: [r["sides"][n]["prompt_tokens_per_s"] for r in results] for n in names})
    new.set_xlabel("new tokens a second")
    prompt.set_xlabel("tokens of the prompt a second")
    prompt.set_yticks([])
    legend_below(figure, new)
    return {"generate-sides.png": png(figure, "Generation", report.machine)}
