"""What a script of the test environment says outside it."""

from __future__ import annotations

import sys
from typing import NoReturn


def missing(error: ModuleNotFoundError) -> NoReturn:
    """Ends with code 2 and a sentence that names the package."""
    print(
        f"error: {sys.executable} has no {error.name}: after `make test`, .venv/bin/python has all that is needed here",
        file=sys.stderr,
    )
    sys.exit(2)
