#!/usr/bin/env python3
"""`gpt2c bench generate` as a script: python python/bench_generate.py --help."""

import sys

from gpt2c.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "generate", *sys.argv[1:]]))
