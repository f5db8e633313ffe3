"""`gpt2c chat`; its fields are its flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from gpt2c.chat.reply import Sampling
from gpt2c.chat.session import Session
from gpt2c.chat.template import require_template
from gpt2c.chat.terminal import converse
from gpt2c.errors import UserError
from gpt2c.load import load_model


@dataclass(frozen=True)
class Chat:
    """Talk to a model that `gpt2c sft` has fine-tuned; /help says what a line can be besides a message."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run (its best checkpoint is taken), a checkpoint, or any GPT-2 in Hugging Face's format or on its hub."""
    system: str = ""
    """The system's message, with which the conversation begins; none if empty."""
    max_new_tokens: int = 300
    """Length of a reply in tokens, at most; a fourth of the context, at most, is kept free for it."""
    temperature: float = 0.8
    """Divides the logits: below 1 more likely, above 1 more surprising replies; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens can come."""
    top_p: float | None = None
    """Only the likeliest tokens whose probabilities sum to this, above 0 and at most 1, can come."""
    seed: int | None = None
    """The same seed gives the same conversation; without one each differs."""
    weights: Literal["fp32", "bf16", "int8"] = "fp32"
    """What a token reads: the parameters, or a copy of a half or a quarter of their bytes, nearly as much faster."""

    def run(self) -> int:
        """Converse until the input ends."""
        if self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens is {self.max_new_tokens}, expected at least 1")
        model, tokenizer, _ = load_model(self.model)
        template = require_template(tokenizer, self.model)
        sampling = Sampling(self.max_new_tokens, self.temperature, self.top_k, self.top_p, self.seed, self.weights)
        try:
            converse(Session(model, template, self.system, sampling))
        except (TypeError, ValueError, IndexError) as error:  # a flag's value, or damaged weights, in one sentence
            raise UserError(str(error)) from error
        return 0
