#!/usr/bin/env python3
"""The times of chapter 5 of the guide, on this machine, in under a minute: attention, layernorm, GELU and AdamW, each
as its formula stands, by PyTorch's own kernel and by gpt2c's, in turns; and the floors of this machine and of a GPU.

    python python/guide_kernels.py            prints the tables; OMP_NUM_THREADS=1 before it: with one thread
    python python/guide_kernels.py --write    keeps them in docs/guide/5-kernels.md, too
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import cuda_roofline
import torch
import tyro
from cuda_compile import ROOT
from cuda_table import markdown, replace_between
from guide_pictures import snippets

from gpt2c import _native
from gpt2c.bench import machine, ops
from gpt2c.bench.case import BOTH, FORWARD, OURS, WAYS, Case, Effort, Function, measure
from gpt2c.bench.floors import Floors, measure_floors
from gpt2c.bench.machine import ProcessorTime
from gpt2c.bench.ops import Setting, Sizes
from gpt2c.bench.report import digits, duration
from gpt2c.bench.timing import Call, interleaved
from gpt2c.ops.adamw import adamw_reference
from gpt2c.ops.gelu import bias_gelu_reference
from gpt2c.ops.layernorm import residual_layernorm_reference

CHAPTER = ROOT / "docs" / "guide" / "5-kernels.md"
SIZES = Sizes(B=1, T=1024, V=257, L=4)  # a window of GPT-2 124M; AdamW gets four of its layers
QUERIES = 8  # that plain Python answers: the time of all is multiplied out
TILE = 64
EFFORT = Effort(1.5)
UPDATE = "update"  # AdamW's way
GPU = next(gpu for gpu in cuda_roofline.GPUS if gpu.name == "H100 SXM")

FORMULA, ONLINE, TILED = "the formula in PyTorch", "online, in plain Python", "in tiles, in PyTorch"
FLOOR, GPU_FLOOR = "floor of this machine", f"floor of gpt2c on an {GPU.name}, bf16"
PROGRAMS = {FORMULA: FORMULA, ONLINE: ONLINE, TILED: TILED, "torch": "PyTorch's own", OURS: "gpt2c",
            FLOOR: FLOOR, GPU_FLOOR: GPU_FLOOR}  # fmt: skip

Seconds = dict[str, dict[str, float]]  # by way and program


@dataclass(frozen=True)
class Args:
    """Measure attention, layernorm, GELU and AdamW in several programs each."""

    write: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Keep the tables in docs/guide/5-kernels.md."""


def attention(sizes: Sizes) -> list[Case]:
    tiled = functools.partial(snippets("5-kernels", "def tiled")["tiled"], rows=TILE, columns=TILE)
    formula = functools.partial(ops.plain_attention, causal=True)
    forward, both = ops.attention_of(Setting(sizes, ways=(FORWARD, BOTH)), causal=True)
    shapes = [(sizes.B, sizes.H, sizes.T, sizes.D)] * 3
    return [beside(forward, {FORMULA: formula, TILED: tiled}, shapes), beside(both, {FORMULA: formula}, shapes)]


def layernorm(sizes: Sizes) -> list[Case]:
    (N, C), setting = (sizes.N, sizes.C), Setting(sizes, ways=(FORWARD, BOTH))
    shapes = [(N, C), (N, C), (C,), (C,)]
    return [beside(c, {FORMULA: residual_layernorm_reference}, shapes) for c in ops.residual_layernorm(setting)]


def gelu(sizes: Sizes) -> list[Case]:
    (N, C), setting = (sizes.N, 4 * sizes.C), Setting(sizes, ways=(FORWARD, BOTH))
    return [beside(c, {FORMULA: bias_gelu_reference}, [(N, C), (C,)]) for c in ops.bias_gelu(setting)]


def adamw(sizes: Sizes) -> list[Case]:
    update = next(c for c in ops.adamw(Setting(sizes)) if c.way == UPDATE)

    def prepare() -> dict[str, Call]:
        state = ([torch.rand(parameters(update))] for _ in range(4))
        formula = functools.partial(adamw_reference, *state, 1, 6e-4, 0.9, 0.95, 1e-8, 0.1)
        return {FORMULA: formula, **update.prepare()}

    return [replace(update, prepare=prepare)]


def parameters(update: Case) -> int:
    return int(update.label.split()[0].replace(",", ""))


def beside(case: Case, sides: Mapping[str, Function], shapes: Sequence[tuple[int, ...]]) -> Case:
    """The case with more sides, which get tensors of these shapes."""

    def prepare() -> dict[str, Call]:
        inputs = [torch.randn(shape) for shape in shapes]
        return {name: WAYS[case.way](side, inputs) for name, side in sides.items()} | case.prepare()

    return replace(case, prepare=prepare)


def online_seconds(sizes: Sizes) -> float:
    """Of the chapter's function for all queries, from a few that see as many keys as all do on average."""
    online = snippets("5-kernels", "def online")["online"]
    q, k, v = (torch.randn(sizes.T, sizes.D).tolist() for _ in range(3))
    queries = range(sizes.T // QUERIES // 2, sizes.T, sizes.T // QUERIES)

    def answer() -> None:
        for i in queries:
            online(q[i], k[: i + 1], v[: i + 1])

    return interleaved({ONLINE: answer}, 5)[ONLINE].median * sizes.B * sizes.H * sizes.T / len(queries)


def best_floors(quick: bool) -> Floors:
    """Of two measurements, so that what else the machine does hides less of what it can do."""
    found = [measure_floors(quick=quick) for _ in range(2)]
    cached = {size: max(floors.cached[size] for floors in found) for size in found[0].cached}
    rates = {name: max(getattr(floors, name) for floors in found) for name in ("copy", "update", "read", "gemm")}
    return Floors(**rates, cached=cached)


def gpu_seconds(op: str, way: str, share: float) -> float:
    """The GPU's floor for a share of what cuda_roofline.py has."""
    op = op.removeprefix("residual_").removeprefix("bias_")
    names = {FORWARD: [f"{op}_forward"], BOTH: [f"{op}_forward", f"{op}_backward"], UPDATE: [op]}[way]
    return share * sum(GPU.seconds(work) for work in cuda_roofline.WORK if work.name in names)


def measured(cases: Sequence[Case], share: float, floors: Floors, effort: Effort) -> Seconds:
    """share: of the work that cuda_roofline.py has."""
    seconds: Seconds = {}
    for case in cases:
        found = measure(case, floors, effort)
        print(f"  {found}", flush=True)
        sides = {side: timing.median for side, timing in found.seconds.items()}
        seconds[case.way] = sides | {FLOOR: found.floor, GPU_FLOOR: gpu_seconds(case.op, case.way, share)}
    return seconds


def rows(seconds: Seconds) -> list[tuple[str, ...]]:
    """One for each program: of each way its time, and how many times gpt2c's that is."""
    found = []
    for program, name in PROGRAMS.items():
        cells = [cell for sides in seconds.values() for cell in times_of(program, sides)]
        if any(cells):
            found.append((name, *cells))
    return found


def times_of(program: str, sides: Mapping[str, float]) -> tuple[str, str]:
    if program not in sides:
        return "", ""
    # Another machine's time is no multiple of this one's.
    ratio = "" if program in (OURS, GPU_FLOOR) else digits(sides[program] / sides[OURS])
    return duration(sides[program]), ratio


def tables(sizes: Sizes = SIZES, effort: Effort = EFFORT, quick: bool = False) -> dict[str, str]:
    """What stands between the chapter's markers, by their names. quick: the floors mean nothing."""
    before = ProcessorTime.now()
    floors, windows = best_floors(quick), sizes.B / cuda_roofline.B
    of_attention = measured(attention(sizes), windows, floors, effort)
    of_attention[FORWARD][ONLINE] = online_seconds(sizes)

    (update,) = adamw(sizes)
    share, N, C = parameters(update) / cuda_roofline.PARAMETERS, sizes.N, sizes.C
    title = f"causal attention, B{sizes.B} H{sizes.H} T{sizes.T} D{sizes.D}"
    others = [
        table(f"x + residual, layernorm, {N} x {C}", measured(layernorm(sizes), windows, floors, effort)),
        table(f"bias, GELU, {N} x {4 * C}", measured(gelu(sizes), windows, floors, effort)),
        table(f"AdamW, {parameters(update):,} parameters", measured([update], share, floors, effort)),
    ]
    return {
        "times of attention": f"{table(title, of_attention)}\n\n{where(before)}",
        "times of the others": "\n\n".join(others),
    }


def table(title: str, seconds: Seconds) -> str:
    return markdown((title, *(cell for way in seconds for cell in (way, "/ gpt2c"))), rows(seconds))


def where(before: ProcessorTime | None) -> str:
    """What this was measured on, in a sentence."""
    facts, now = machine.describe(torch.get_num_threads()), ProcessorTime.now()
    threads = "one thread" if facts["threads"] == "1" else f"{facts['threads']} threads"
    busy = f"; other processes took {now.others_since(before):.0%} of the processors" if before and now else ""
    return f"({facts['processor']}; {threads}, {facts['kernels']}, fp32; torch {facts['torch']}{busy}.)"


def main() -> None:
    args = tyro.cli(Args)
    _native.keep_heap()  # all sides' results lie in memory that is kept: not the page faults are measured
    found = tables()
    for name, text in found.items():
        print(f"\n{text}")
        if args.write:
            CHAPTER.write_text(replace_between(CHAPTER.read_text(encoding="utf-8"), name, text), encoding="utf-8")


if __name__ == "__main__":
    main()
