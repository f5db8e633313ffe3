"""`python -m gpt2c`, and so `torchrun -m gpt2c train ...`."""

import sys

from gpt2c.cli import main

if __name__ == "__main__":
    sys.exit(main())
