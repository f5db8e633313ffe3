"""`gpt2c chat`; its fields are its flags."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2c.chat.session import Session
from gpt2c.chat.template import require_template
from gpt2c.chat.terminal import converse
from gpt2c.commands.flags import ModelName, SamplingFlags, Weights, for_weights, sampling
from gpt2c.decode import check_weights
from gpt2c.errors import UserError
from gpt2c.generate import check_sampling
from gpt2c.load import load_model


@dataclass(frozen=True)
class Chat:
    """Talk to a model that `gpt2c sft` has fine-tuned; /help says what a line can be besides a message."""

    model: ModelName
    system: str = ""
    """The system's message, with which the conversation begins; none if empty."""
    max_new_tokens: int = 300
    """Length of a reply in tokens, at most; a fourth of the context, at most, is kept free for it."""
    sampling: SamplingFlags = sampling()
    weights: Weights = "fp32"

    def run(self) -> int:
        """Converse until the input ends."""
        if self.max_new_tokens < 1:
            raise UserError(f"--max-new-tokens is {self.max_new_tokens}, expected at least 1")
        model, tokenizer, _ = load_model(self.model)
        model = for_weights(model, self.weights)
        template = require_template(tokenizer, self.model)
        how = self.sampling
        try:
            check_sampling(self.max_new_tokens, how.temperature, how.top_k, how.top_p, how.seed)
            check_weights(model, self.weights)
            converse(Session(model, template, self.system, self.max_new_tokens, how, self.weights))
        except (TypeError, ValueError, IndexError) as error:  # a flag's value, or damaged weights, in one sentence
            raise UserError(str(error)) from error
        return 0
