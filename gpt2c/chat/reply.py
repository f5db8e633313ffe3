"""A model's reply to a conversation, as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from gpt2c.chat.template import Template
from gpt2c.evaluate import SAMPLE_TEMPERATURE
from gpt2c.model import GPT2
from gpt2c.sampling import GREEDY, Sampling
from gpt2c.tokenizer import StreamDecoder, printable


class Reply:
    """Iterated over once, gives the pieces of the reply's text. `text`: all until now. `is_whole`: whether the model
    has ended it, by <|end|> or another special token, and not the context or max_new_tokens.

    messages: the last is the user's. Raises UserError for messages that are none, and ValueError, one sentence, for
    those that fill the context or for settings of the sampling that are not possible.
    """

    def __init__(
        self,
        model: GPT2,
        template: Template,
        messages: Sequence[Mapping[str, str]],
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        weights: str = "fp32",
    ) -> None:
        prompt = torch.from_numpy(template.prompt(messages))[None].to(model.wte.weight.device)
        room = model.config.n_positions + 1 - prompt.shape[1]  # the last token takes no position
        if room < 1:
            raise ValueError(f"{prompt.shape[1]} tokens of messages, expected at most {model.config.n_positions}")
        self._tokens = model.stream(
            prompt, min(max_new_tokens, room), sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed,
            weights,
        )  # fmt: skip
        self._tokenizer, self._ends = template.tokenizer, template.ends
        self.text = ""
        self.is_whole = False

    def __iter__(self) -> Iterator[str]:
        decoder = StreamDecoder(self._tokenizer)
        for token in map(int, self._tokens):
            if token in self._ends:
                self.is_whole = True
                break
            piece = decoder.feed(token)
            self.text += piece
            yield piece
        rest = decoder.finish()
        self.text += rest
        yield rest


def sample_reply(model: GPT2, template: Template, messages: list[dict[str, str]], tokens: int, seed: int) -> str:
    """The messages and the reply to them, the same for the same weights and seed, a line for each."""
    said = "".join(Reply(model, template, messages, tokens, Sampling(SAMPLE_TEMPERATURE, seed=seed)))
    lines = [f"{message['role']}: {message['content']}" for message in messages]
    return printable("\n".join([*lines, f"assistant: {said}"]))
