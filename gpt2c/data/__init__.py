"""Tokens to train on: prepared, read, ordered, and cut into windows (docs/data.md, docs/loader.md)."""

from gpt2c.data.dataset import IGNORED, Batch, Dataset, Source
from gpt2c.data.loading import EMBEDDED, load_dataset
from gpt2c.data.tokens import Tokens

__all__ = ["EMBEDDED", "IGNORED", "Batch", "Dataset", "Source", "Tokens", "load_dataset"]
