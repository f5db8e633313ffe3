#!/usr/bin/env python3
"""`gpt2c train` as a script: python python/train.py --help."""

import sys

from gpt2c.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
