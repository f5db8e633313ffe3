"""`gpt2c bench kernels`: every op, forward and backward, beside PyTorch's and the machine's floors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gpt2c import _native
from gpt2c.bench import kernel_plots, lengths
from gpt2c.bench.benchmark import Benchmark, using_threads
from gpt2c.bench.case import BOTH, COMPILED, FORWARD, OURS, Case, Effort, Measured, measure
from gpt2c.bench.floors import Floors, measure_floors
from gpt2c.bench.ops import OPS, Setting, Sizes, cases
from gpt2c.bench.plots import Pictures
from gpt2c.bench.report import Report, Table, digits, duration, spread

SIZES = {
    "B4xT64": Sizes(B=4, T=64),
    "B4xT256": Sizes(B=4, T=256),
    "B1xT1024": Sizes(B=1, T=1024),
    "small": Sizes(B=12, T=64, H=4, D=32, V=257, L=4),
}
PARTS = ("sizes", "overhead", "threads", "lengths")
TINY = {"tiny": Sizes(B=2, T=4, H=2, D=4, V=11, L=1)}
EIGHT = Sizes(B=1, T=8, H=1, D=8, V=8, L=1)


@dataclass(frozen=True)
class Kernels(Benchmark):
    """Measure every op, forward and backward, beside PyTorch's own and the machine's floors.

    Then the cost of a call at 8 x 8, attention from 64 to 4096 tokens, and one thread against several.
    """

    only: tuple[Literal[tuple(OPS)], ...] = ()
    """These ops; all if not given."""
    parts: tuple[Literal[PARTS], ...] = PARTS
    """Every op at each of the sizes, a call's overhead, one thread against several, attention's lengths."""
    sizes: tuple[Literal[tuple(SIZES)], ...] = tuple(SIZES)
    """Of GPT-2 124M, B windows of T tokens, or of the `small` recipe: 4 layers, 128 wide, B12 x T64."""
    cold: bool = False
    """Empty the caches before each call; otherwise small tensors are measured as they lie in them."""
    compile: bool = False
    """Also beside torch.compile, which takes some seconds for each measurement and needs a C++ compiler."""
    seconds: float = 1.0
    """How long each measurement takes, about."""

    @property
    def is_cold(self) -> bool:
        return self.cold

    def measure(self, report: Report, threads: int) -> None:
        _native.keep_heap()  # all sides' results lie in memory that is kept: not the page faults are measured
        effort = Effort(self.seconds, cold=self.cold)
        if self.quick:
            effort = Effort(0.0, least=2, cold=self.cold)
        sizes = TINY if self.quick else {name: SIZES[name] for name in self.sizes}
        if "sizes" in self.parts:
            self._sizes(report, sizes, effort)
        if "overhead" in self.parts:
            self._overhead(report)
        if "threads" in self.parts:
            if threads > 1:
                self._threads(report, next(iter(sizes.values())), threads, effort)
            else:
                report.note("threads are not compared: there is one")
        if "lengths" in self.parts:
            if "attention" in (self.only or OPS):
                lengths.measure_lengths(report, effort, self.quick)
            else:
                report.note("lengths are not measured: they are attention's")

    def draw(self, report: Report) -> Pictures:
        return kernel_plots.draw(report)

    def _sizes(self, report: Report, sizes: dict[str, Sizes], effort: Effort) -> None:
        settings = [Setting(s, compiled=self.compile) for s in sizes.values()]
        unique = {(c.op, c.way, c.label): c for setting in settings for c in cases(setting, self.only)}
        more = ", and their compilation" if self.compile else ""
        print(f"ops: {len(unique)} measurements of about {duration(effort.seconds)}{more}", flush=True)
        found = [_measure(report, "sizes", case, effort) for case in unique.values()]
        report.tables.append(_size_table(found, ["torch"] + [COMPILED] * self.compile))

    def _overhead(self, report: Report) -> None:
        found = cases(Setting(EIGHT, ways=(FORWARD, BOTH)), self.only)
        effort = Effort(0.1, least=2, calls=2) if self.quick else Effort(0.3, least=5, most=30, calls=200)
        print(f"a call's cost: {len(found)} measurements", flush=True)
        rows = [_overhead_row(_measure(report, "overhead", case, effort)) for case in found]
        header = ("op", "what", "shape", "gpt2c, us", "spread", "torch, us", "torch / gpt2c")
        report.tables.append(Table("Cost of a call at 8 x 8", header, rows, text=3))

    def _threads(self, report: Report, sizes: Sizes, threads: int, effort: Effort) -> None:
        counts = thread_counts(threads)
        found = cases(Setting(sizes), self.only)
        print(f"threads: {len(found)} measurements with {' and '.join(map(str, counts))} threads", flush=True)
        by_count = {}
        for count in counts:
            with using_threads(count):
                floors = measure_floors(cold=self.cold, quick=self.quick)
                by_count[count] = [_measure(report, "threads", c, effort, floors, threads=count) for c in found]
        rows = [_threads_row(row) for row in zip(*by_count.values(), strict=True)]
        header = ("op", "what", "shape", *(f"gpt2c, {n} thread{'s' * (n > 1)}" for n in counts),
                  *(f"{side}: 1 to {counts[-1]} threads" for side in (OURS, "torch")))  # fmt: skip
        report.tables.append(Table("One thread against several", header, rows, text=3))


def thread_counts(threads: int) -> list[int]:
    """1, 2, 4, ... and `threads`."""
    return sorted({1 << i for i in range(threads.bit_length()) if 1 << i <= threads} | {threads})


def _measure(
    report: Report, part: str, case: Case, effort: Effort, floors: Floors | None = None, **more: int
) -> Measured:
    found = measure(case, floors or report.floors, effort)
    report.results.append({"part": part, **more, **found.to_dict()})
    print(f"  {found}", flush=True)
    for name, why in found.unavailable.items():
        report.note(f"{name} cannot run here: {why}")
    return found


def _size_table(found: Sequence[Measured], peers: Sequence[str]) -> Table:
    header = ("op", "what", "shape", "gpt2c", "spread", "GB/s", "GFLOP/s", "of floor",
              *(f"{peer} / gpt2c" for peer in peers))  # fmt: skip
    rows = [
        (m.op, m.way, m.label, duration(m.ours), spread(m.seconds[OURS]), digits(m.work.bytes / m.ours / 1e9),
         digits(m.work.flops / m.ours / 1e9), f"{m.of_floor:.0%}",
         *(f"{m.ratios[peer]:.2f}" if peer in m.ratios else "" for peer in peers))
        for m in found
    ]  # fmt: skip
    return Table("Ops", header, rows, text=3)


def _overhead_row(m: Measured) -> tuple[str, ...]:
    us = {name: f"{taken.median * 1e6:.1f}" for name, taken in m.seconds.items()}
    theirs = us.get("torch", ""), f"{m.ratios['torch']:.2f}" if "torch" in us else ""
    return (m.op, m.way, m.label, us[OURS], spread(m.seconds[OURS]), *theirs)


def _threads_row(found: Sequence[Measured]) -> tuple[str, ...]:
    first, last = found[0], found[-1]
    gains = [
        f"{first.seconds[side].median / last.seconds[side].median:.2f}" if side in last.seconds else ""
        for side in (OURS, "torch")
    ]
    return (first.op, first.way, first.label, *(duration(m.ours) for m in found), *gains)
