#!/usr/bin/env python3
"""`gpt2c bench kernels` as a script: python python/bench_kernels.py --help."""

import sys

from gpt2c.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "kernels", *sys.argv[1:]]))
