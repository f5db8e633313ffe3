"""Conversations from JSON lines, each as the ids that are learned from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gpt2c.chat.template import Encoded, Template, check_conversation
from gpt2c.data.packed import unpacked
from gpt2c.errors import UserError, reason


@dataclass
class Conversations:
    """Those of a file that can be learned from. cut: how many of them end before the file's do; skipped: how many are
    left out. opening: the messages of each before the assistant's first."""

    encoded: list[Encoded] = field(default_factory=list)
    openings: list[list[dict[str, str]]] = field(default_factory=list)
    cut: int = 0
    skipped: int = 0


def read_conversations(path: Path, template: Template, context: int) -> Conversations:
    """The conversations of a file, see read_messages, as ids.

    One that takes more than `context` columns ends after its last whole reply that fits; without one it is skipped.
    """
    found = Conversations()
    for messages in read_messages(path):
        _add(found, template.encode(messages), messages, template.end, context)
    if not found.encoded:
        skipped = f"; {found.skipped} have no whole reply in the context of {context}" if found.skipped else ""
        raise UserError(f"{path} holds no conversation to learn from{skipped}")
    return found


def read_messages(path: Path) -> Iterator[list[dict[str, str]]]:
    """The messages of each line of a file, an object with the list `messages`, other keys of it ignored.

    Raises UserError, with file and line, for a line that is damaged or no conversation.
    """
    for line, raw in _lines(path):
        where = f"{path}, line {line}"
        try:
            messages = json.loads(raw.decode("utf-8-sig"))["messages"]
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: byte {error.start} of it is not UTF-8 ({error.reason})") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON: {reason(error)}; expected a conversation on each line") from error
        except (KeyError, TypeError) as error:
            raise UserError(f"{where} is no conversation: expected an object with a list `messages`") from error
        try:
            check_conversation(messages)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        yield messages


def _add(found: Conversations, whole: Encoded, messages: list[dict[str, str]], end: int, context: int) -> None:
    replies = np.flatnonzero(whole.learned & (whole.ids == end)) + 1  # where each one ends
    fitting = replies[replies <= context + 1]  # the last id is a target only, and takes no column
    if not len(fitting):
        found.skipped += 1
        return
    found.cut += len(fitting) < len(replies)
    found.encoded.append(Encoded(whole.ids[: fitting[-1]].astype(np.uint16), whole.learned[: fitting[-1]]))
    first = next(i for i, message in enumerate(messages) if message["role"] == "assistant")
    found.openings.append([{name: message[name] for name in ("role", "content")} for message in messages[:first]])


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1."""
    with unpacked(path) as file:
        for line, raw in enumerate(file, 1):
            if raw.strip():
                yield line, raw
