#!/usr/bin/env python3
"""Runs the op tests on the emulated CUDA backend and counts what each kernel went through.

python python/cuda_tested.py --write     also keeps the table in docs/cuda.md
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from cuda_compile import ROOT
from cuda_table import markdown, write_between
from packages import missing

try:
    import pytest
    from cuda_launches import Call, recorded
except ModuleNotFoundError as error:
    missing(error)


@dataclass(frozen=True)
class Args:
    """Runs the op tests on the emulated CUDA backend and counts what each kernel went through."""

    write: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Keep the table in docs/cuda.md."""


def tested_table(calls: Sequence[Call]) -> str:
    """Of each kernel its launches, and the dtypes and shapes (sizes, strides and flags of the call) among them."""
    launches: dict[str, int] = {}
    shapes: dict[str, set[tuple[str, str]]] = {}
    for call in calls:
        for launch in call.launches:
            name = f"`{launch.file}: {launch.kernel}`"
            launches[name] = launches.get(name, 0) + 1
            shapes.setdefault(name, set()).add((call.dtype, f"{call.op} {call.shape}"))
    lines = [
        (
            name,
            ", ".join(sorted({d for d, _ in of} - {"-"})),
            str(len({s for _, s in of})),
            str(len(of)),
            str(launches[name]),
        )
        for name, of in sorted(shapes.items())
    ]
    return markdown(("kernel", "dtypes", "shapes", "shapes x dtypes", "launches"), lines, text_columns=2)


def main(args: Args) -> int:
    start = time.monotonic()
    with recorded() as calls:
        code = pytest.main(["--quiet", "-k", "cuda-emulated", str(ROOT / "tests")])
    if code:
        print("error: tests failed, so nothing is counted", file=sys.stderr)
        return 1
    table = tested_table(calls)
    print(f"{table}\n\n{time.monotonic() - start:.0f} s")
    if args.write:
        write_between("tested", table)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
