"""How many of the assistant's turns in a file of conversations a model says word for word."""

from __future__ import annotations

from pathlib import Path

from gpt2c.chat.conversations import read_messages
from gpt2c.chat.reply import Reply
from gpt2c.chat.template import Template
from gpt2c.errors import UserError
from gpt2c.model import GPT2


def exact_replies(model: GPT2, template: Template, path: Path, most: int) -> tuple[int, int]:
    """Number of replies that are the file's, and of replies asked for: one for each assistant's turn, after the file's
    own turns before it, the first `most` of them. The likeliest token is taken each time.

    Raises UserError as read_messages, and for a file without one. A turn that the context has no room for is wrong.
    """
    right = asked = 0
    context = model.config.n_positions
    for messages in read_messages(path):
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            if asked == most:
                return right, asked
            asked += 1
            wanted = message["content"]
            length = len(template.tokenizer.encode(wanted)) + 1
            if len(template.prompt(messages[:i])) + length <= context + 1:
                reply = Reply(model, template, messages[:i], length)
                right += "".join(reply) == wanted and reply.is_whole
    if not asked:
        raise UserError(f"{path} holds no conversation to ask for")
    return right, asked
