"""A conversation as it goes on: what has been said, and what of it the model still sees."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpt2c.chat.reply import Reply
from gpt2c.chat.template import Template, check_conversation
from gpt2c.errors import UserError, reason
from gpt2c.model import GPT2
from gpt2c.sampling import Sampling

RESERVED = 4  # a reply finds at least a fourth of the context free


class Session:
    """system: the system's message, none if empty. turns: all messages of user and assistant."""

    def __init__(
        self,
        model: GPT2,
        template: Template,
        system: str,
        max_new_tokens: int,
        sampling: Sampling,
        weights: str = "fp32",
    ) -> None:
        self.model, self.template, self.system = model, template, system
        self.max_new_tokens, self.sampling, self.weights = max_new_tokens, sampling, weights
        self.turns: list[dict[str, str]] = []
        self._seen_from = 0  # the turns before are forgotten

    def ask(self, text: str) -> tuple[Reply, int]:
        """The reply to the user's text, and how many exchanges, the oldest ones, had to be forgotten for it.

        Text and reply become turns by `keep`. UserError for a text that does not fit into the context.
        """
        turns = [*self.turns, {"role": "user", "content": text}]
        context = self.model.config.n_positions
        most = context + 1 - min(self.max_new_tokens, context // RESERVED)  # the last token takes no position
        first = first_that_fits(self.template, self._messages([]), turns, most, self._seen_from)
        size = len(self.template.prompt(self._messages(turns[first:])))
        if size > context:
            raise UserError(
                f"the message has too many tokens: with the system's and the template's they are {size}, expected at "
                f"most {context}, the model's context"
            )
        forgotten, self._seen_from = (first - self._seen_from) // 2, first
        sampling = self.sampling
        if sampling.seed is not None:
            sampling = dataclasses.replace(sampling, seed=sampling.seed + len(self.turns) // 2)
        messages = self._messages(turns[first:])
        return Reply(self.model, self.template, messages, self.max_new_tokens, sampling, self.weights), forgotten

    def keep(self, text: str, reply: str) -> None:
        """Have the text and the reply, as far as it came, be the latest turns."""
        self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": reply}]

    def reset(self) -> None:
        """Forget everything but the system's message."""
        self.turns, self._seen_from = [], 0

    def save(self, path: Path) -> None:
        """Add the conversation to a file as a line that `gpt2c sft` reads. UserError if there is none, if a reply says
        nothing, or if that fails."""
        if not self.turns:
            raise UserError("there is nothing to save yet")
        messages = self._messages(self.turns)
        check_conversation(messages)
        line = json.dumps({"messages": messages}, ensure_ascii=False)
        try:
            with open(path, "a+b") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
                start = (
                    b"" if file.read(1) in (b"", b"\n") else b"\n"
                )  # an editor may have left the last line's end out
                file.write(start + line.encode() + b"\n")
        except OSError as error:
            raise UserError(f"cannot write {path}: {reason(error)}") from error

    def _messages(self, turns: list[dict[str, str]]) -> list[dict[str, str]]:
        return [{"role": "system", "content": self.system}] * bool(self.system) + turns


def first_that_fits(
    template: Template,
    system: Sequence[Mapping[str, str]],
    turns: Sequence[Mapping[str, str]],
    most: int,
    first: int = 0,
) -> int:
    """From which turn on the system's message and the turns are a prompt of at most `most` tokens; the last one stays.

    turns: of user and assistant in turn, the last the user's. first: those before it are forgotten already.
    """
    while first + 1 < len(turns) and len(template.prompt([*system, *turns[first:]])) > most:
        first += 2
    return first
