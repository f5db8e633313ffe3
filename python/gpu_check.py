#!/usr/bin/env python3
"""Everything that only a GPU can show, in one report: whether the CUDA kernels are right there, and how fast.

Runs the op tests on the backend `cuda` and tests/test_cuda.py, the same under compute-sanitizer (memcheck, racecheck)
where it is installed, each op beside PyTorch's (SDPA with its flash and cuDNN backends, fused AdamW, torch.compile),
and a training step of GPT-2 124M beside the same model in plain PyTorch. Writes report.md and report.json.

    python python/gpu_check.py --build

Exit code: 0 if every op is right, 1 if not, 2 for a wrong flag, 3 if there is no GPU to use.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import gpu_tools
import tyro


@dataclass(frozen=True)
class Args:
    """Test and measure the CUDA kernels on this machine's first GPU."""

    out: Path = Path("gpu-check")
    """Folder of report.md and report.json."""
    build: bool = False
    """Build and install this checkout with CUDA kernels first; otherwise what is installed is taken."""
    sanitizer: bool = True
    """Run the tests under compute-sanitizer too, if it is installed; takes much longer."""
    compiled: bool = True
    """Measure torch.compile's versions too."""
    repeats: int = 50
    """Calls of each function that is measured."""
    timeout: float = 3600
    """Seconds for each program that is started: a build, the tests of an op, and those under a sanitizer's tool."""


def main(argv: list[str] | None = None) -> int:
    args = tyro.cli(Args, args=argv)
    if args.build:
        print("building gpt2c with its CUDA kernels", flush=True)
        code, output = gpu_tools.install(args.timeout)
        if code:
            print(f"{output}\nerror: the build failed", file=sys.stderr)
            return 1
        rest = [arg for arg in (sys.argv[1:] if argv is None else argv) if arg != "--build"]
        return subprocess.call([sys.executable, __file__, *rest])  # with what has been installed just now

    import gpu_run  # only now: it needs gpt2c

    return gpu_run.check(args.out, args.sanitizer, args.compiled, args.repeats, args.timeout)


if __name__ == "__main__":
    sys.exit(main())
