#!/usr/bin/env python3
"""Everything that only a GPU can show, in one report: whether the CUDA kernels are right there, and how fast.

Runs the op tests on the backend `cuda` and tests/test_cuda.py, the same under compute-sanitizer (memcheck, racecheck)
where it is installed, each op beside PyTorch's (SDPA with its flash and cuDNN backends, fused AdamW, torch.compile),
and a training step of GPT-2 124M beside the same model in plain PyTorch. Writes report.md and report.json.

    python python/gpu_check.py --build

Exit code: 0 if every op is right, 1 if not, 2 for a wrong flag or a missing package, 3 if there is no GPU to use.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

import gpu_tools

NEEDED = ("gpt2c", "torch", "pytest")


def parser() -> argparse.ArgumentParser:
    """argparse's, since --build must work where nothing is installed yet."""
    made = argparse.ArgumentParser(description="Test and measure the CUDA kernels on this machine's first GPU.")
    switch = argparse.BooleanOptionalAction
    made.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder of report.md and report.json")
    made.add_argument(
        "--build", action="store_true",
        help="build and install this checkout with CUDA kernels first, and what it needs; otherwise what is installed "
        "is taken",
    )  # fmt: skip
    made.add_argument(
        "--sanitizer", action=switch, default=True,
        help="run the tests under compute-sanitizer too, if it is installed; takes much longer",
    )  # fmt: skip
    made.add_argument("--compiled", action=switch, default=True, help="measure torch.compile's versions too")
    made.add_argument("--repeats", type=int, default=50, help="calls of each function that is measured")
    made.add_argument(
        "--timeout", type=float, default=3600,
        help="seconds for each program that is started: a build, an op's tests, and those under a sanitizer's tool",
    )  # fmt: skip
    return made


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.build:
        print("building gpt2c with its CUDA kernels", flush=True)
        code, output = gpu_tools.install(args.timeout)
        if code:
            print(f"{output}\nerror: the build failed", file=sys.stderr)
            return 1
        rest = [arg for arg in (sys.argv[1:] if argv is None else argv) if arg != "--build"]
        return subprocess.call([sys.executable, __file__, *rest])  # with what has been installed just now

    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"error: {sys.executable} has no {' and no '.join(missing)}: --build installs what is missing; after "
            "`make test`, .venv/bin/python has all of it",
            file=sys.stderr,
        )
        return 2

    import gpu_run  # only now: it needs gpt2c

    return gpu_run.check(args.out, args.sanitizer, args.compiled, args.repeats, args.timeout)


if __name__ == "__main__":
    sys.exit(main())
