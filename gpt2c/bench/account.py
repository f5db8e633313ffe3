"""`gpt2c bench account`: where the milliseconds of a training step go, each beside its floor."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from unittest import mock

from gpt2c import _native
from gpt2c.bench import recipes
from gpt2c.bench.benchmark import Benchmark
from gpt2c.bench.case import OURS, Work
from gpt2c.bench.floors import Floors
from gpt2c.bench.plots import Pictures, bars, legend_below, panels, png
from gpt2c.bench.report import Report, Table
from gpt2c.bench.side import Trainer

WARM_UP = 2  # steps
REST = "all else: Python, autograd, torch's sums and copies"


@dataclass(frozen=True)
class Account(Benchmark):
    """Say where the time of a training step goes: seconds in each kernel, what they could be at best, and the rest."""

    recipe: Literal[tuple(recipes.RECIPES)] = "124m"
    """`124m`: GPT-2's smallest size; `shakespeare`: nanoGPT's small recipe, on bytes."""
    sizes: tuple[str, ...] = ()
    """Batches, like `B4xT64 B1xT1024`: windows and tokens in each; the recipe's own if not given."""
    data: str = "embedded"
    """Text file, or `embedded`: Python's help, 0.5 MB."""
    steps: int = 10
    """Optimizer steps that are measured; medians are shown."""

    def measure(self, report: Report, threads: int) -> None:
        _native.keep_heap()  # as `gpt2c train` does
        steps = 2 if self.quick else self.steps
        base = recipes.config_of(self.recipe, self.data, steps + WARM_UP, self.quick)
        for config in [recipes.resized(base, size) for size in self.sizes] or [base]:
            trainer = Trainer(OURS, config)
            accounts = [account_of(trainer, step, report.floors) for step in range(1, steps + WARM_UP + 1)]
            what = f"{'tiny' if self.quick else self.recipe}, {recipes.size_of(config)}"
            report.results.append({"what": what, "parts": _medians(accounts[WARM_UP:])})
            report.tables.append(_table(f"A step's account: {what}", report.results[-1]["parts"]))

    def draw(self, report: Report) -> Pictures:
        return {"account.png": partial(_bars, report)} if report.results else {}


def _bars(report: Report) -> bytes:
    """Each part's time beside its floor."""
    figure, axes = panels(len(report.results), (6.4, 4.2))
    for ax, result in zip(axes, report.results, strict=True):
        parts = result["parts"]
        bars(ax, list(parts), {key: [p[key] * 1e3 for p in parts.values()] for key in ("measured", "floor")})
        ax.set(xscale="log", xlabel=f"milliseconds of a step, {result['what']}")
    legend_below(figure, axes[0])
    return png(figure, "Where a training step's time goes", report.machine)


def account_of(trainer: Trainer, step: int, floors: Floors) -> dict[str, dict[str, float]]:
    """Of one step, by part: seconds measured, at best, and the number of kernel calls."""
    parts: dict[str, dict[str, float]] = defaultdict(lambda: {"measured": 0.0, "floor": 0.0, "calls": 0})
    config = trainer.model.config
    with _watching(parts, floors, {config.vocab_size, config.padded_vocab_size}):
        _, seconds = trainer.step(step)
    rest = seconds - sum(p["measured"] for p in parts.values())
    return {**parts, REST: {"measured": rest, "floor": 0.0, "calls": 0}}


@contextmanager
def _watching(parts: dict[str, dict[str, float]], floors: Floors, vocabulary: set[int]) -> Iterator[None]:
    """Adds every kernel call to its part."""
    call = _native.call

    def timed(kernel: str, *args: Any) -> int | None:
        start = time.perf_counter()
        result = call(kernel, *args)
        part = parts[_name(kernel, args, vocabulary)]
        part["measured"] += time.perf_counter() - start
        work = WORKS[kernel](args)
        part["floor"] += floors.seconds(work.bytes, work.flops)
        part["calls"] += 1
        return result

    with mock.patch.object(_native, "call", timed):
        yield


def _name(kernel: str, args: tuple, vocabulary: set[int]) -> str:
    if kernel != "matmul":
        return kernel
    return "matmul, head" if vocabulary & set(args[5:8]) else "matmul, layers"


def _elements(tensors: list) -> int:
    return sum(t.numel() for t in tensors)


def _pairs(shape: tuple) -> int:
    _, B, H, Tq, Tk, D, causal, *_, starts = shape
    if starts is not None:  # so many keys less; at T = Tq = Tk
        return H * D * (B * Tq * (Tq + 1) // 2 - int(starts.sum()))
    return B * H * Tq * Tk * D // (2 if causal else 1)


def _bytes(count: int) -> Work:
    return Work(4 * count, 0)


# Bytes and operations of a call, from the arguments of its contract in csrc/kernels.h.
WORKS: dict[str, Callable[[tuple], Work]] = {
    "matmul": lambda a: Work(4 * (a[5] * a[7] + a[6] * a[7] + a[5] * a[6]), 2 * a[5] * a[6] * a[7]),
    "attention_forward": lambda a: Work(4 * _elements(a[1:5]), 4 * _pairs(a[0])),
    "attention_backward": lambda a: Work(4 * _elements(a[1:6] + a[7:10]), 10 * _pairs(a[0])),
    "layernorm_forward": lambda a: _bytes((4 if a[2] is not None else 2) * a[9] * a[10]),
    "layernorm_backward": lambda a: _bytes((4 if a[2] is not None else 3) * a[10] * a[11]),
    "gelu_forward": lambda a: _bytes(2 * a[4] * a[5]),
    "gelu_backward": lambda a: _bytes(3 * a[6] * a[7]),
    "cross_entropy_forward": lambda a: _bytes(a[5] * a[6]),
    "cross_entropy_backward": lambda a: _bytes(a[6] * (a[7] + a[8])),
    "embedding_forward": lambda a: _bytes(2 * a[5] * a[6] * a[7]),
    "embedding_backward": lambda a: _bytes((4 * a[6] * a[7] + a[10]) * a[8]),
    "adamw": lambda a: _bytes(7 * _elements(a[1])),
    "grad_norm": lambda a: _bytes(_elements(a[1])),
}


def _medians(accounts: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """By part, the largest first."""
    names = {name for account in accounts for name in account}
    keys = ("measured", "floor", "calls")
    medians = {n: {k: statistics.median(a[n][k] for a in accounts) for k in keys} for n in names}
    return dict(sorted(medians.items(), key=lambda item: -item[1]["measured"]))


def _table(title: str, parts: dict[str, dict[str, float]]) -> Table:
    total, floor = (sum(p[key] for p in parts.values()) for key in ("measured", "floor"))
    rows = [
        (name, f"{p['calls']:.0f}", f"{p['measured'] * 1e3:.2f}", f"{p['measured'] / total:.1%}",
         f"{p['floor'] * 1e3:.2f}", f"{p['floor'] / p['measured']:.0%}", f"{(p['measured'] - p['floor']) * 1e3:.2f}")
        for name, p in parts.items()
    ]  # fmt: skip
    rows.append(("together", "", f"{total * 1e3:.2f}", "100%", f"{floor * 1e3:.2f}", f"{floor / total:.0%}",
                 f"{(total - floor) * 1e3:.2f}"))  # fmt: skip
    return Table(title, ("part", "calls", "ms", "of the step", "floor, ms", "of floor", "above it, ms"), rows)
