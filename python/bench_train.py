#!/usr/bin/env python3
"""`gpt2c bench train` as a script: python python/bench_train.py --help."""

import sys

from gpt2c.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "train", *sys.argv[1:]]))
