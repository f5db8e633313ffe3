"""Times of several functions that take turns: median and spread."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from gpt2c.bench.machine import cache_bytes

Call = Callable[[], object]
WARM_UP = 1  # rounds that are not counted, besides the calls that come before
L2_FLUSH_BYTES = 256 << 20  # more than any GPU's L2
HEAD_START = 2_000_000  # clock cycles that the GPU is kept busy, so that Python is ahead of it: about 1 ms
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: the median, and a tenth of the calls is faster than `low`, a tenth slower than `high`."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        tenths = statistics.quantiles(seconds, n=10, method="inclusive") if len(seconds) > 1 else seconds
        return cls(statistics.median(seconds), tenths[0], tenths[-1], len(seconds))


def interleaved(
    run: Mapping[str, Call], repeats: int, device: torch.device = CPU, cold: bool = False, calls: int = 1
) -> dict[str, Timing]:
    """The times of functions without arguments, in turns and in an order that turns around each round, so that all meet
    the same machine and none always follows the same neighbour.

    repeats: rounds that count. cold: the caches are emptied before each call. calls: made in a row and divided by,
    for functions too short for the clock. On a GPU the device's own time, always with cold caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in run}
    for i in range(WARM_UP + repeats):
        for name in list(run) if i % 2 == 0 else reversed(run):
            taken = _gpu_seconds(run[name], device) if device.type == "cuda" else _cpu_seconds(run[name], cold, calls)
            if i >= WARM_UP:
                seconds[name].append(taken)
    return {name: Timing.of(values) for name, values in seconds.items()}


def repeats_within(budget: float, run: Mapping[str, Call], least: int, most: int) -> int:
    """How many rounds fit into `budget` seconds; runs each function once to know."""
    start = time.perf_counter()
    for function in run.values():
        function()
    return min(most, max(least, int(budget / (time.perf_counter() - start))))


def _cpu_seconds(function: Call, cold: bool, calls: int) -> float:
    if cold:
        _evict_buffer().add_(1)  # not zero_, whose stores may go around the caches
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def _gpu_seconds(function: Call, device: torch.device) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _flush_buffer(device).zero_()
    torch.cuda._sleep(HEAD_START)
    start.record()
    function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


@functools.cache
def _evict_buffer() -> torch.Tensor:
    return torch.zeros(2 * cache_bytes(), dtype=torch.uint8)


@functools.cache
def _flush_buffer(device: torch.device) -> torch.Tensor:
    return torch.empty(L2_FLUSH_BYTES, dtype=torch.uint8, device=device)
