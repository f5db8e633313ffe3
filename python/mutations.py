#!/usr/bin/env python3
"""Changes the kernels and the package in small ways, one at a time in a copy, and sees whether the tests notice.

    python python/mutations.py                          all changes of tests/mutants, about an hour on two cores
    python python/mutations.py --only layernorm eps     those whose file, test or words hold one of these

Needs cmake and pybind11, and what the tests need. Each change is for the test file of its name, which runs up to its
first failure; on the CPU's best instruction set alone. The exit code is 1 if a change survives without an explanation.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from mutants import Mutant, all_mutants  # noqa: E402
from mutants.run import Kernels, Outcome, ToolFailed, copy_package, run_test  # noqa: E402


@dataclass(frozen=True)
class Args:
    """Changes the kernels and the package in small ways, one at a time, and sees whether the tests notice."""

    only: tuple[str, ...] = ()
    """Changes whose file, test or words hold one of these; all if empty."""


def chosen(mutants: list[Mutant], words: tuple[str, ...]) -> list[Mutant]:
    """Those of which file, test or description hold one of the words, or all."""
    return [m for m in mutants if not words or any(word in f"{m.file} ({m.test}) {m.what}" for word in words)]


def try_mutant(mutant: Mutant | None, test: str, kernels: Kernels | None) -> Outcome:
    """How the test ends with the change, or for None as things are."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_package(folder)
        if mutant and kernels and mutant.file.startswith("csrc/"):
            kernels.build(mutant, folder)
        elif mutant:
            (folder / mutant.file).write_text(mutant.changed(), encoding="utf-8")
        return run_test(test, folder, kernels.other_backends() if kernels else "not cuda")


def verdict(mutant: Mutant, outcome: Outcome) -> str:
    """In a word; what is no verdict, as a change that cannot be imported, is an error."""
    if outcome.code == 0:
        return "explained" if mutant.unnoticed else "SURVIVED"
    crashed = outcome.code is not None and outcome.code < 0  # by a signal, of memory that is not the process's
    return "noticed" if crashed or outcome.code in (1, None) else "ERROR"


def main(args: Args) -> int:
    mutants = chosen(all_mutants(), args.only)
    for mutant in mutants:
        mutant.changed()  # a list that is out of date is told now, and not after an hour
    kernels = Kernels() if any(m.file.startswith("csrc/") for m in mutants) else None
    counts: dict[str, int] = {}
    sound: dict[str, str] = {}  # test: how it fails without a change
    started = time.monotonic()
    for mutant in sorted(mutants, key=lambda m: m.test):
        if mutant.test not in sound:
            sound[mutant.test] = try_mutant(None, mutant.test, kernels).failed
        if failed := sound[mutant.test]:
            found, outcome = "ERROR", Outcome(None, 0.0, "")
            failed = f"without a change, too: {failed}"
        else:
            try:
                outcome = try_mutant(mutant, mutant.test, kernels)
                found, failed = verdict(mutant, outcome), outcome.failed or mutant.unnoticed
            except ToolFailed as error:
                found, outcome, failed = "ERROR", Outcome(None, 0.0, ""), str(error)
        counts[found] = counts.get(found, 0) + 1
        words = f"{found:9} {outcome.seconds:5.1f} s  {mutant.file} ({mutant.test}): {mutant.what}"
        print(f"{words}; {failed}" if failed else words, flush=True)
    totals = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    print(f"{len(mutants)} changes in {(time.monotonic() - started) / 60:.0f} minutes: {totals}")
    return int(bool(counts.keys() & {"SURVIVED", "ERROR"}))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
