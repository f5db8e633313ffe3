#!/usr/bin/env python3
"""What nvcc makes of the CUDA kernels, without a GPU: registers, shared memory, occupancy, machine code, and gates.

    python python/cuda_report.py                     the tables and the gates, for all architectures
    python python/cuda_report.py --arch 80 90 --check    the gates only
    python python/cuda_report.py --write             also keeps the tables in docs/cuda.md

A gate that does not hold is told with kernel, architecture, what was found and what was expected; the exit code is then
1. It is 3 where nvcc or nvdisasm is missing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import cuda_roofline
import tyro
from cuda_compile import ROOT, SOURCES, Compiled, ToolMissing, Tools, compile_file, find_tools
from cuda_gates import check_all, check_fit
from cuda_occupancy import ARCHITECTURES
from cuda_table import Row, kernel_table, seconds_table, summary_table, with_launches, write_between

PICTURE = ROOT / "docs" / "images" / "cuda-roofline.png"


@dataclass(frozen=True)
class Args:
    """Registers, shared memory, occupancy and machine code of the CUDA kernels, and what must hold of them."""

    arch: tuple[int, ...] = tuple(ARCHITECTURES)
    """Architectures: 80 is sm_80."""
    jobs: int = os.cpu_count() or 1
    """Compilers at a time."""
    check: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """The gates only, without the tables (which need torch and the emulator of tests/emulation)."""
    write: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Keep the tables in docs/cuda.md, those of the roofline too, and its picture."""
    json: Path | None = None
    """A file for all figures of all instances."""


def compile_all(tools: Tools, arches: tuple[int, ...], jobs: int) -> dict[str, dict[int, Compiled]]:
    """Every file of csrc/cuda for every architecture."""
    sources = sorted(SOURCES.glob("*.cu"))
    with ThreadPoolExecutor(jobs) as pool:
        running = {s.name: {a: pool.submit(compile_file, tools, s, a) for a in arches} for s in sources}
        return {name: {a: f.result() for a, f in of.items()} for name, of in running.items()}


def rows_of(compiled: dict[str, dict[int, Compiled]], arches: tuple[int, ...]) -> dict[int, list[Row]]:
    from cuda_launches import gpt2_launches  # needs torch and gpt2c, which the gates do not

    return {
        a: with_launches([i for of in compiled.values() for i in of[a].instances], gpt2_launches(a)) for a in arches
    }


def tables(tools: Tools, compiled: dict[str, dict[int, Compiled]], rows: dict[int, list[Row]]) -> str:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    parts = [f"Made by `python python/cuda_report.py --write` at commit {commit} with nvcc {tools.version}."]
    parts += [summary_table(rows)]
    for arch, of in rows.items():
        parts += [f"<details><summary>sm_{arch}, kernel by kernel</summary>", kernel_table(of), "</details>"]
    parts += ["<details><summary>compile time</summary>", seconds_table(compiled), "</details>"]
    return "\n\n".join(parts)


def main(args: Args) -> int:
    unknown = sorted(set(args.arch) - set(ARCHITECTURES))
    if unknown or not args.arch:
        print(f"error: --arch is {unknown}, expected some of {', '.join(map(str, ARCHITECTURES))}", file=sys.stderr)
        return 2
    try:
        tools = find_tools()
    except ToolMissing as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    compiled = compile_all(tools, args.arch, args.jobs)
    broken = check_all([i for of in compiled.values() for c in of.values() for i in c.instances])
    if not args.check:
        rows = rows_of(compiled, args.arch)
        broken += [b for of in rows.values() for row in of for b in check_fit(row)]
        text = tables(tools, compiled, rows)
        print(text)
        if args.json:
            figures = [{**asdict(r.instance), "threads": r.threads, "dynamic_shared": r.shared, "blocks": r.blocks}
                       for of in rows.values() for r in of]  # fmt: skip
            args.json.write_text(json.dumps(figures, indent=1))
        if args.write:
            write_between("kernels", text)
            write_between("roofline", f"{cuda_roofline.gpu_table()}\n\n{cuda_roofline.work_table()}")
            cuda_roofline.draw(PICTURE)
    for gate in broken:
        print(f"broken gate: {gate}", file=sys.stderr)
    if not broken:
        count = sum(len(c.instances) for of in compiled.values() for c in of.values())
        print(f"all gates hold: {count} kernels, {', '.join(f'sm_{a}' for a in args.arch)}, nvcc {tools.version}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
