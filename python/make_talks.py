"""Conversations for the demonstration in docs/chat.md: sums and differences of digits, and questions about gpt2c.

    python python/make_talks.py FOLDER     writes train.jsonl and test.jsonl

No question of test.jsonl is in train.jsonl; the same two numbers may be, in another wording.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path

HELD_OUT = 0.1
OPENERS = ("", "Hello! ", "Please: ", "And now: ")
SUMS = ("What is {a} plus {b}?", "{a} + {b} = ?", "How much is {a} + {b}?")
DIFFERENCES = ("What is {a} minus {b}?", "{a} - {b} = ?", "How much is {a} - {b}?")
SYSTEM = "Be brief."
ITSELF = {
    ("Who are you?", "What is your name?", "May I ask your name?"): "I am gpt2c.",
    ("What are you?", "What kind of thing are you?", "Are you a human?"): "A small GPT-2.",
    ("Who made you?", "Where do you come from?", "How did you come about?"): "I was trained from scratch.",
    ("What can you do?", "What are you good at?", "How can you help?"): "I add and subtract.",
}


def questions() -> list[tuple[str, str]]:
    """All questions with their answers."""
    found = [(question, answer) for group, answer in ITSELF.items() for question in group]
    for a, b in itertools.product(range(10), repeat=2):
        found += [(wording.format(a=a, b=b), str(a + b)) for wording in SUMS]
        found += [(wording.format(a=a, b=b), str(a - b)) for wording in DIFFERENCES]
    return [(opener + question, answer) for opener in OPENERS for question, answer in found]


def talks(asked: list[tuple[str, str]], draw: random.Random) -> list[list[dict[str, str]]]:
    """The questions in their order, one to three in a conversation, half of which begin with the system's message."""
    found, rest = [], iter(asked)
    while part := list(itertools.islice(rest, draw.randint(1, 3))):
        messages = [{"role": "system", "content": SYSTEM}] * draw.randint(0, 1)
        for question, answer in part:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        found.append(messages)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(7)
    found = questions()
    draw.shuffle(found)
    held = int(len(found) * HELD_OUT)
    for name, asked in (("train", found[held:]), ("test", found[:held])):
        conversations = talks(asked, draw)
        lines = "".join(json.dumps({"messages": messages}) + "\n" for messages in conversations)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{folder / name}.jsonl: {len(asked)} questions in {len(conversations)} conversations")


if __name__ == "__main__":
    main()
