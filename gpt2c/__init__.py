"""GPT-2 from scratch on PyTorch, with fused C++ kernels."""

import os
import sys

# A thread that waits for the others of its team spins before it sleeps. OpenMP's default is to spin for milliseconds:
# on a machine with other work, a thread that has something to do then waits for a core on which another only waits.
# libgomp reads the limit once, when torch loads it. What it brings: docs/performance.md, "On a busy machine".
if "torch" not in sys.modules and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"

# ruff: noqa: E402, since the lines above come first
from importlib.metadata import PackageNotFoundError, version

from gpt2c.starting import ends_at_once, is_command

with ends_at_once(is_command()):
    from gpt2c import ops
    from gpt2c._native import keep_heap
    from gpt2c.config import GPT2Config
    from gpt2c.model import GPT2
    from gpt2c.optim import AdamW

try:
    __version__ = version("gpt2c")
except PackageNotFoundError:  # run from the source tree
    __version__ = "0+unknown"

__all__ = ["GPT2", "AdamW", "GPT2Config", "__version__", "keep_heap", "ops"]
