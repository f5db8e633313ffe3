"""The command `gpt2c`; `python -m gpt2c`, and so `torchrun -m gpt2c train ...`."""

import sys

from gpt2c.starting import ends_at_once


def main() -> int:
    """Load the command, and run it."""
    with ends_at_once():
        from gpt2c.cli import main
    return main()


if __name__ == "__main__":
    sys.exit(main())
