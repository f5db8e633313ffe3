"""`gpt2c sample`; its fields are its flags."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import torch

from gpt2c.commands.flags import ModelName, SamplingFlags, Weights, for_weights, sampling
from gpt2c.errors import UserError
from gpt2c.load import load_model, require_rows
from gpt2c.model import GPT2
from gpt2c.sampling import Sampling
from gpt2c.show import show
from gpt2c.tokenizer import StreamDecoder, Tokenizer, prompt_ids, special_names


@dataclass(frozen=True)
class Sample:
    """Let a model write, shown token by token."""

    model: ModelName
    prompt: str = "\n"
    """The text to continue; the default is a line break, and an empty one starts from the token that begins texts."""
    special: bool = False
    """Take the names of special tokens in the prompt, <|endoftext|> say, for these tokens; else they are text."""
    max_new_tokens: int = 300
    """Length of each sample in tokens, at most: one of the tokens that end the model's texts ends it."""
    sampling: SamplingFlags = sampling()
    num_samples: int = 1
    """Number of samples, one after the other."""
    weights: Weights = "fp32"

    def run(self) -> int:
        """Write the samples to the standard output."""
        if self.num_samples < 1:
            raise UserError(f"--num-samples is {self.num_samples}, expected at least 1")
        model, tokenizer, _ = load_model(self.model)
        if not self.special and (names := special_names(tokenizer, self.prompt)):
            warnings.warn(f"{', '.join(names)} in the prompt is text; --special makes it the token", stacklevel=1)
        model = for_weights(model, self.weights)
        for i in range(self.num_samples):
            if self.num_samples > 1:
                print(f"--- sample {i + 1} ---")
            seed = self.sampling.seed
            self._write(model, tokenizer, replace(self.sampling, seed=None if seed is None else seed + i))
        return 0

    def _write(self, model: GPT2, tokenizer: Tokenizer, how: Sampling) -> None:
        ids = prompt_ids(tokenizer, self.prompt, self.special)
        require_rows(model, tokenizer, ids)
        decoder = StreamDecoder(tokenizer)
        try:
            tokens = model.stream(
                torch.from_numpy(ids)[None], self.max_new_tokens, how.temperature, how.top_k, how.top_p, how.seed,
                self.weights,
            )  # fmt: skip
            show(self.prompt)
            for token in map(int, tokens):
                if token in tokenizer.ends:
                    break
                show(decoder.feed(token))
        except (TypeError, ValueError, IndexError) as error:  # a flag's value, or damaged weights, in one sentence
            raise UserError(str(error)) from error
        show(decoder.finish() + "\n")
