"""Threads that wait give way, and a run says that others take the cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2c import busy
from gpt2c.bench.machine import ProcessorTime

LIMITS = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"


@pytest.mark.parametrize(
    ("before", "set_by_user", "expected"),
    [("", {}, "1000"), ("", {"OMP_WAIT_POLICY": "passive"}, None), ("import torch; ", {}, None)],
)
def test_waiting_threads_sleep_after_some_microseconds(
    tmp_path: Path, before: str, set_by_user: dict[str, str], expected: str | None
) -> None:
    """libgomp itself says what it has read. Who sets it, or has loaded torch before, keeps what they have."""
    environment = {name: value for name, value in os.environ.items() if name not in LIMITS} | set_by_user
    code = f"{before}import gpt2c, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    environment["OMP_DISPLAY_ENV"] = "verbose"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(expected)
    if expected and "GOMP_SPINCOUNT" in done.stderr:  # another OpenMP than GNU's does not know it
        assert f"GOMP_SPINCOUNT = '{expected}'" in done.stderr


def test_a_busy_machine_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, times = [0.0], [ProcessorTime(0, 0, 0)]
    monkeypatch.setattr(busy.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(busy.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(ProcessorTime, "now", classmethod(lambda cls: times[-1]))
    neighbours = busy.Neighbours()

    def after(seconds: float, all_: float, own: float) -> str | None:
        clock[0] += seconds
        last = times[-1]
        times.append(ProcessorTime(last.capacity + 4 * seconds, last.all + all_, last.own + own))
        return neighbours.note()

    assert after(9, all_=36, own=0) is None  # too early to say
    assert after(81, all_=90, own=90) is None  # of these 90 seconds others had 36 core seconds, 0.4 cores
    told = "the machine is busy: other processes take 1.5 of its 4 cores, which slows each step down"
    assert after(10, all_=40, own=25) == told
    assert after(10, all_=40, own=0) is None  # once is enough
