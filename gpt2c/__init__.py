"""GPT-2 from scratch on PyTorch, with fused C++ kernels."""

from importlib.metadata import PackageNotFoundError, version

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
