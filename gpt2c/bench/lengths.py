"""Attention as the context grows: time, rate and memory, beside torch's and the formula as it stands."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F

from gpt2c import ops
from gpt2c.bench import machine
from gpt2c.bench.case import BOTH, FORWARD, OURS, WAYS, Case, Effort, Function, measure
from gpt2c.bench.ops import Setting, Sizes, attention_of, plain_attention
from gpt2c.bench.report import Report, Table, digits, duration, megabytes

LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)
QUICK_LENGTHS = (8, 16)
PLAIN = "T x T matrix"  # the formula as it stands
SIDES: dict[str, Function] = {
    OURS: functools.partial(ops.attention, causal=True),
    "torch": functools.partial(F.scaled_dot_product_attention, is_causal=True),
    PLAIN: functools.partial(plain_attention, causal=True),
}
PLAIN_TENSORS = 6  # of T x T that its forward and backward hold at once, about


def measure_lengths(report: Report, effort: Effort, quick: bool) -> None:
    """Causal attention of one window of GPT-2 124M, forward and with its backward."""
    T_of = QUICK_LENGTHS if quick else LENGTHS
    print(f"attention: {2 * len(T_of)} measurements from {T_of[0]} to {T_of[-1]} tokens", flush=True)
    memory = peak_memory(T_of)
    rows = []
    for i, T in enumerate(T_of):
        peaks = {side: peaks[i] for side, peaks in memory.items() if len(peaks) > i}
        report.results.append({"part": "memory", "T": T, "peak_bytes": peaks})
        cells = [megabytes(peaks[side]) if side in peaks else "" for side in SIDES]
        for case in _cases(T):
            found = measure(case, report.floors, effort)
            print(f"  {found}", flush=True)
            for name, why in found.unavailable.items():
                report.note(f"{name} cannot run here: {why}")
            report.results.append({"part": "lengths", "T": T, **found.to_dict()})
            times = [duration(found.seconds[side].median) if side in found.seconds else "" for side in SIDES]
            rate = digits(found.work.flops / found.ours / 1e9)
            ratio = f"{found.ratios['torch']:.2f}" if "torch" in found.ratios else ""
            rows.append((str(T), case.way, *times, rate, ratio, *(cells if case.way == BOTH else [""] * len(cells))))
    header = ("T", "what", *SIDES, "GFLOP/s", "torch / gpt2c", *(f"{side}, peak MB" for side in SIDES))
    report.tables.append(Table("Causal attention, B1 H12 D64, as the context grows", header, rows, text=2))


def _sides(T: int) -> dict[str, Function]:
    """Those that have the memory for it."""
    available = machine.available_bytes()
    fits = available is None or _plain_bytes(T) < available / 2
    return {name: function for name, function in SIDES.items() if name != PLAIN or fits}


def _plain_bytes(T: int) -> int:
    return PLAIN_TENSORS * 4 * Sizes().H * T**2


def _cases(T: int) -> list[Case]:
    """attention_of's, forward and both ways, with one side more."""
    setting = Setting(Sizes(B=1, T=T), ways=(FORWARD, BOTH))

    def prepare(way: str) -> dict:
        inputs = [setting.new(1, setting.sizes.H, T, setting.sizes.D) for _ in range(3)]
        return {name: WAYS[way](function, inputs) for name, function in _sides(T).items()}

    found = attention_of(setting, causal=True)
    return [Case(c.op, c.way, c.label, lambda way=c.way: prepare(way), c.work) for c in found]


def peak_memory(T_of: Sequence[int]) -> dict[str, list[int]]:
    """Bytes that a process takes at most beyond its imports, forward and backward of each length. Each side is in a
    process of its own, whose lengths grow, so that the peak is the latest one's."""
    context = multiprocessing.get_context("spawn")
    started = []
    for side in SIDES:
        lengths = [T for T in T_of if side in _sides(T)]
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(side, lengths, torch.get_num_threads(), there), daemon=True)
        process.start()
        there.close()  # so that the end of the process is seen
        started.append((side, lengths, here, process))
    found = {}
    for side, lengths, pipe, process in started:
        found[side] = list(_received(pipe, len(lengths)))
        process.join()
    return found


def _received(pipe: Connection, count: int) -> Iterator[int]:
    """Less than `count` where the process found its end, for want of memory say."""
    with contextlib.suppress(EOFError):
        for _ in range(count):
            yield pipe.recv()


def _serve(side: str, lengths: Sequence[int], threads: int, pipe: Connection) -> None:
    torch.set_num_threads(threads)

    def run(T: int) -> None:
        WAYS[BOTH](SIDES[side], [torch.randn(1, Sizes().H, T, Sizes().D) for _ in range(3)])()

    run(8)  # what libraries keep for themselves is not the op's
    before = machine.peak_bytes()
    for T in lengths:
        run(T)
        pipe.send(machine.peak_bytes() - before)
