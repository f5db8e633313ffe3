#!/usr/bin/env python3
"""`gpt2c sample` as a script: python python/sample.py --help."""

import sys

from gpt2c.cli import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
