"""`gpt2c sample`; its fields are its flags."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from gpt2c.errors import UserError
from gpt2c.load import load_model
from gpt2c.model import GPT2
from gpt2c.show import show
from gpt2c.tokenizer import StreamDecoder, Tokenizer


@dataclass(frozen=True)
class Sample:
    """Let a model write, shown token by token."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run (its best checkpoint is taken), a checkpoint, or any GPT-2 in Hugging Face's format or on its hub."""
    prompt: str = "\n"
    """The text to continue; the default is a line break, and an empty one starts from the end-of-text token."""
    max_new_tokens: int = 300
    """Length of each sample in tokens, at most: an end-of-text token ends it."""
    temperature: float = 0.8
    """Divides the logits: below 1 more likely, above 1 more surprising text; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens can come."""
    top_p: float | None = None
    """Only the likeliest tokens whose probabilities sum to this, above 0 and at most 1, can come."""
    seed: int | None = None
    """The same seed gives the same text; without one each call differs. Sample i of several has the seed + i."""
    num_samples: int = 1
    """Number of samples, one after the other."""
    weights: Literal["fp32", "bf16", "int8"] = "fp32"
    """What a token reads: the parameters, or a copy of a half or a quarter of their bytes, nearly as much faster."""

    def run(self) -> int:
        """Write the samples to the standard output."""
        if self.num_samples < 1:
            raise UserError(f"--num-samples is {self.num_samples}, expected at least 1")
        model, tokenizer, _ = load_model(self.model)
        for i in range(self.num_samples):
            if self.num_samples > 1:
                print(f"--- sample {i + 1} ---")
            self._write(model, tokenizer, None if self.seed is None else self.seed + i)
        return 0

    def _write(self, model: GPT2, tokenizer: Tokenizer, seed: int | None) -> None:
        ids = tokenizer.encode(self.prompt).astype(np.int64) if self.prompt else np.array([tokenizer.end_of_text])
        decoder = StreamDecoder(tokenizer)
        try:
            tokens = model.stream(
                torch.from_numpy(ids)[None], self.max_new_tokens, self.temperature, self.top_k, self.top_p, seed,
                self.weights,
            )  # fmt: skip
            show(self.prompt)
            for token in map(int, tokens):
                if token == tokenizer.end_of_text:
                    break
                show(decoder.feed(token))
        except (TypeError, ValueError, IndexError) as error:  # a flag's value, or damaged weights, in one sentence
            raise UserError(str(error)) from error
        show(decoder.finish() + "\n")
