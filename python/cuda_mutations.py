#!/usr/bin/env python3
"""Leaves out each barrier and wait of the CUDA kernels in turn, on the emulator, and sees whether that is noticed.

    python python/cuda_mutations.py --write     also keeps the table in docs/cuda.md

Takes one or two minutes. The exit code is 1 if one was not noticed. tests/emulation/mutate.py says what is done.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import tyro
from cuda_compile import ROOT
from cuda_table import markdown, write_between
from packages import missing

sys.path.insert(0, str(ROOT / "tests"))
try:
    from emulation.cases import CASES
    from emulation.mutate import leave_out_each
except ModuleNotFoundError as error:
    missing(error)


@dataclass(frozen=True)
class Args:
    """Leaves out each barrier and wait of the CUDA kernels in turn and sees whether that is noticed."""

    write: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Keep the table in docs/cuda.md."""


def kind_of(detection: str) -> str:
    """What an emulator's message is about, in short."""
    for kind in ("uninitialised", "race", "cp.async", "other results"):
        if kind in detection:
            return kind
    return "another error" if detection else "not noticed"


def mutation_table(detections: Mapping[str, str], code: Mapping[str, str]) -> str:
    """detections: of "FILE:LINE@KERNEL", how its absence is noticed; code: what stands at each FILE:LINE."""
    kinds: dict[str, list[str]] = {}
    for site, detection in detections.items():
        kinds.setdefault(site.split("@")[0], []).append(kind_of(detection))
    lines = [
        (f"`{place}`", f"`{code[place]}`", ", ".join(sorted({*found})), f"{len(found)}",
         f"{len(found) - found.count('not noticed')}")
        for place, found in sorted(kinds.items())
    ]  # fmt: skip
    noticed = sum(map(bool, detections.values()))
    score = f"{noticed} of {len(detections)} were noticed when left out, each in each instance of a kernel template."
    header = ("place", "barrier or wait", "noticed as", "instances", "noticed")
    return f"{score}\n\n{markdown(header, lines, text_columns=3)}"


def source_lines() -> dict[str, str]:
    """The code at each FILE:LINE of the kernels, without comments."""
    return {
        f"{path.name}:{n}": re.sub(r"//.*", "", line).strip()
        for path in (ROOT / "csrc" / "cuda").glob("*.cu*")
        for n, line in enumerate(path.read_text().splitlines(), 1)
    }


def main(args: Args) -> int:
    detections = leave_out_each(list(CASES))
    table = mutation_table(detections, source_lines())
    print(table)
    for site, detection in detections.items():
        if not detection:
            print(f"not noticed: {site}", file=sys.stderr)
    if args.write:
        write_between("mutation score", table)
    return int(not all(detections.values()))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
