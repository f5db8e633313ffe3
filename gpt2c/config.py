"""The sizes of a GPT-2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from gpt2c.errors import shown

# Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), table 2: (n_layer, n_head, n_embd).
# The head counts are those of the released weights.
PRESETS = {
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}
MAX_HEAD_DIM = 256  # the largest head the attention kernels take
VOCAB_MULTIPLE = 64  # whole cache lines and whole tiles for the head's matrix product


@dataclass(frozen=True)
class GPT2Config:
    """Sizes of a GPT-2; the defaults are the smallest released model's (124M).

    vocab_size: V, number of tokens.
    n_positions: context length in tokens, the largest T.
    n_embd: C, width of the residual stream.
    n_layer: L, number of blocks.
    n_head: H, attention heads per block; the head dimension is D = C / H, at most 256.
    dropout: probability used for the embedding, attention and residual dropout while training, 0 <= dropout < 1.
    layer_norm_epsilon: added to the variance in every layernorm.

    Raises TypeError or ValueError, one sentence, for anything that is not a model.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    dropout: float = 0.0
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            object.__setattr__(self, name, _positive_int(name, getattr(self, name)))
        for name in ("dropout", "layer_norm_epsilon"):
            object.__setattr__(self, name, _finite_number(name, getattr(self, name)))
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd is {self.n_embd}, expected a multiple of n_head ({self.n_head})")
        if self.head_dim > MAX_HEAD_DIM:
            raise ValueError(f"n_embd / n_head is {self.head_dim}, expected at most {MAX_HEAD_DIM}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, expected 0 <= dropout < 1")
        if self.layer_norm_epsilon <= 0:
            raise ValueError(f"layer_norm_epsilon is {self.layer_norm_epsilon}, expected more than 0")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> GPT2Config:
        """The released size `name` ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl") with fields changed by keyword.

        Raises ValueError for an unknown name and TypeError for an unknown field.
        """
        if name not in PRESETS:
            raise ValueError(f"preset is {name!r}, expected one of {', '.join(PRESETS)}")
        n_layer, n_head, n_embd = PRESETS[name]
        return cls(**{"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, **changes})

    @property
    def head_dim(self) -> int:
        """D, the width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def padded_vocab_size(self) -> int:
        """Vp, rows of the embedding as stored: V rounded up to a multiple of 64 (50257 -> 50304)."""
        return math.ceil(self.vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE

    def num_parameters(self) -> int:
        """Number of scalars, the vocabulary's padding not counted (gpt2: 124,439,808): V C + P C for the embeddings,
        12 C^2 + 13 C for each layer, 2 C for the last layernorm."""
        C = self.n_embd
        return (self.vocab_size + self.n_positions) * C + self.n_layer * (12 * C * C + 13 * C) + 2 * C


def _positive_int(name: str, value: object) -> int:
    """As Python's own, since it is written as JSON; NumPy's are taken."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {shown(value)}, expected an integer")
    if value < 1:
        raise ValueError(f"{name} is {value}, expected at least 1")
    return int(value)


def _finite_number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} is {shown(value)}, expected a number")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}, expected a finite number")
    return value if isinstance(value, int) else float(value)
