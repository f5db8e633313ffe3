"""What the training benchmark trains: recipes, sizes of windows and of models, and what a step costs at least."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from gpt2c.bench.floors import Floors
from gpt2c.config import GPT2Config
from gpt2c.errors import UserError
from gpt2c.settings import TrainConfig
from gpt2c.tokenizer import get_tokenizer

# fmt: off
RECIPES = {
    "124m": dict(tokenizer="gpt2", n_layer=12, n_head=12, n_embd=768, context=64, batch_size=4,
                 lr=6e-4, min_lr=6e-5, warmup_steps=10, beta2=0.95),
    "shakespeare": dict(tokenizer="bytes", n_layer=4, n_head=4, n_embd=128, context=64, batch_size=12,
                        lr=1e-3, min_lr=1e-4, warmup_steps=100, beta2=0.99),
}
QUICK = dict(tokenizer="bytes", n_layer=1, n_head=2, n_embd=32, context=16, batch_size=2, warmup_steps=1)
MODELS = {  # parameters with GPT-2's vocabulary: n_layer, n_head, n_embd
    "10M": (6, 5, 160),
    "50M": (8, 8, 512),
    "124M": (12, 12, 768),
    "355M": (24, 16, 1024),
    "774M": (36, 20, 1280),
}
QUICK_MODELS = {"1 layer": (1, 2, 32), "2 layers": (2, 2, 32)}
# fmt: on
LENGTHS = (64, 256, 1024, 2048, 4096)
QUICK_LENGTHS = (8, 16)
UPDATE_BYTES = 28  # of a parameter: read p g m v, write p m v
STATE_BYTES = 16  # of a parameter: weight, gradient, two moments
# What eager PyTorch keeps for the backward: about 20 numbers of each column of a layer, and three of each logit.
LAYER_BYTES, LOGIT_BYTES = 80, 12


@dataclass(frozen=True)
class Job:
    """A training step to measure: what it is called in tables, its settings, and with how many threads."""

    what: str
    config: TrainConfig
    threads: int
    steps: int

    @property
    def model(self) -> GPT2Config:
        return self.config.model_config(get_tokenizer(self.config.tokenizer).vocab_size)

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.config.batch_size * self.config.context

    @property
    def parameters(self) -> int:
        m = self.model
        return (m.vocab_size + m.n_positions) * m.n_embd + m.n_layer * (12 * m.n_embd**2 + 13 * m.n_embd) + 2 * m.n_embd

    @property
    def flops(self) -> float:
        """Of a step: 6 for each parameter and token, and causal attention's 6 L T C for each token, half of the 12 that
        the whole square would take."""
        m = self.model
        return self.tokens * (6.0 * self.parameters + 6.0 * m.n_layer * self.config.context * m.n_embd)

    def floor(self, floors: Floors) -> float:
        """Seconds that a step cannot be faster than: all products at the best product's rate, then AdamW's pass."""
        return self.flops / floors.gemm + UPDATE_BYTES * self.parameters / floors.bandwidth(float("inf"))

    @property
    def bytes(self) -> int:
        """Memory that a side takes, about."""
        m = self.model
        kept = self.tokens * (LAYER_BYTES * m.n_layer * m.n_embd + LOGIT_BYTES * m.vocab_size)
        return STATE_BYTES * self.parameters + kept


def config_of(recipe: str, data: str, steps: int, quick: bool) -> TrainConfig:
    """A recipe's settings; its learning rate's cosine ends with the steps."""
    settings = QUICK if quick else RECIPES[recipe]
    return TrainConfig(data=data, steps=steps, **{**settings, "warmup_steps": min(settings["warmup_steps"], steps - 1)})


def resized(config: TrainConfig, size: str) -> TrainConfig:
    """With batches of another size, as `B4xT64` says it: 4 windows of 64 tokens."""
    found = re.fullmatch(r"B([1-9]\d{0,4})xT([1-9]\d{0,5})", size)
    if not found:
        raise UserError(f"--sizes has {size!r}, expected batches like B4xT64: 4 windows of 64 tokens")
    return dataclasses.replace(config, batch_size=int(found[1]), context=int(found[2]))


def size_of(config: TrainConfig) -> str:
    return f"B{config.batch_size}xT{config.context}"
