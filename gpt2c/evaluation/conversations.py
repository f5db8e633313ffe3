"""How many of the assistant's turns in a file of conversations a model says word for word."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from gpt2c.chat.conversations import read_messages
from gpt2c.chat.reply import Reply
from gpt2c.chat.template import Template
from gpt2c.errors import UserError
from gpt2c.model import GPT2


def exact_replies(
    model: GPT2, template: Template, path: Path, most: int, show: Callable[[int, int], None] = lambda done, total: None
) -> tuple[int, int]:
    """Number of replies that are the file's, and of replies asked for: one for each assistant's turn, after the file's
    own turns before it, the first `most` of them. The likeliest token is taken each time.

    show: told how many replies are done, and of how many, after each. Raises UserError as read_messages, and for a file
    without one. A turn that the context has no room for is wrong.
    """
    context = model.config.n_positions
    turns = list(islice(_turns(path), most))
    right = 0
    for asked, (messages, i) in enumerate(turns, 1):
        wanted = messages[i]["content"]
        length = len(template.tokenizer.encode(wanted)) + 1
        if len(template.prompt(messages[:i])) + length <= context + 1:
            reply = Reply(model, template, messages[:i], length)
            right += "".join(reply) == wanted and reply.is_whole
        show(asked, len(turns))
    if not turns:
        raise UserError(f"{path} holds no conversation to ask for")
    return right, len(turns)


def _turns(path: Path) -> Iterator[tuple[list[dict[str, str]], int]]:
    """A conversation, and which of its messages is the assistant's, for each of them."""
    for messages in read_messages(path):
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                yield messages, i
