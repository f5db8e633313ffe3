"""A conversation as it goes on: what has been said, and what of it the model still sees."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from gpt2c.chat.reply import Reply, Sampling
from gpt2c.chat.template import Template
from gpt2c.errors import UserError
from gpt2c.files import writing
from gpt2c.model import GPT2

RESERVED = 4  # a reply finds at least a fourth of the context free


class Session:
    """system: the system's message, none if empty. turns: the messages of user and assistant that are not forgotten."""

    def __init__(self, model: GPT2, template: Template, system: str, sampling: Sampling) -> None:
        self.model, self.template, self.system, self.sampling = model, template, system, sampling
        self.turns: list[dict[str, str]] = []
        self._replies = 0

    @property
    def messages(self) -> list[dict[str, str]]:
        """What the model sees."""
        return [{"role": "system", "content": self.system}] * bool(self.system) + self.turns

    def ask(self, text: str) -> tuple[Reply, int]:
        """The reply to the user's text, and how many exchanges, the oldest ones, had to be forgotten for it.

        What comes of the reply is kept by `keep`. UserError for a text that does not fit into the context.
        """
        self.turns.append({"role": "user", "content": text})
        try:
            forgotten = self._make_room()
            seed = self.sampling.seed
            sampling = self.sampling if seed is None else dataclasses.replace(self.sampling, seed=seed + self._replies)
            return Reply(self.model, self.template, self.messages, sampling), forgotten
        except UserError:
            self.turns.pop()
            raise

    def keep(self, reply: Reply) -> None:
        """Have the reply, as far as it came, be the assistant's turn."""
        self.turns.append({"role": "assistant", "content": reply.text})
        self._replies += 1

    def reset(self) -> None:
        """Forget everything but the system's message."""
        self.turns.clear()

    def save(self, path: Path) -> None:
        """Add the conversation to a file as a line that `gpt2c sft` reads. UserError if there is none or that fails."""
        if not self.turns:
            raise UserError("there is nothing to save yet")
        with writing(path), open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")

    def _make_room(self) -> int:
        context = self.model.config.n_positions
        wanted = min(self.sampling.max_new_tokens, context // RESERVED)
        forgotten = 0
        while (size := len(self.template.prompt(self.messages))) + wanted > context + 1 and len(self.turns) > 1:
            del self.turns[:2]
            forgotten += 1
        if size > context:
            raise UserError(
                f"the message has too many tokens: with the system's and the template's they are {size}, expected at "
                f"most {context}, the model's context"
            )
        return forgotten
