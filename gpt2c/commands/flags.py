"""Flags that several commands have."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

import tyro

from gpt2c.model import GPT2
from gpt2c.sampling import Sampling

ModelName = Annotated[
    str,
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="MODEL",
        help="A run (its best checkpoint is taken), a checkpoint, or any GPT-2 in Hugging Face's format or on its hub.",
    ),
]
Weights = Annotated[
    Literal["fp32", "bf16", "int8"],
    tyro.conf.arg(
        help="What a token reads: the parameters, or a copy of a half or a quarter of their bytes, nearly as much "
        "faster."
    ),
]
SamplingFlags = tyro.conf.OmitArgPrefixes[Sampling]


def sampling() -> Any:
    """A field of SamplingFlags with the defaults of a command."""
    return field(default_factory=lambda: Sampling(temperature=0.8))


def for_weights(model: GPT2, weights: str) -> GPT2:
    """The model that `weights` can be packed from: bf16 becomes fp32, which packing starts from."""
    return model if weights == "fp32" else model.float()
