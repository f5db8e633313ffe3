"""Conversations for the demonstration in docs/chat.md: sums and differences, and questions about gpt2c.

    python python/make_talks.py FOLDER     writes train.jsonl and test.jsonl

The pairs of numbers, and the wordings of the questions about itself, that test.jsonl asks for are not in train.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path

LARGEST = 20  # of the numbers
HELD_OUT = 0.1
SUMS = ("What is {a} plus {b}?", "{a} + {b} = ?", "How much is {a} + {b}?")
DIFFERENCES = ("What is {a} minus {b}?", "{a} - {b} = ?", "How much is {a} - {b}?")
SYSTEM = "Answer in as few words as you can."
OPENERS = ("", "Hello! ", "Hi. ", "Please tell me: ", "One more thing: ", "Now, ", "So, ", "Excuse me, ")
ITSELF = {
    ("who are you?", "what is your name?", "may I ask your name?"): "I am gpt2c.",
    ("what are you?", "what kind of thing are you?", "are you a human?"): "A small GPT-2, trained from scratch.",
    ("who made you?", "where do you come from?", "how did you come about?"): "I was trained on this machine's CPU.",
    ("what can you do?", "what are you good at?", "how can you help?"): "I add and subtract small numbers.",
}


def arithmetic(pairs: list[tuple[int, int]], draw: random.Random, repeats: int) -> list[tuple[str, str]]:
    """Questions and answers, `repeats` for each pair of numbers and operation."""
    found = []
    for a, b in pairs:
        for _ in range(repeats):
            found.append((draw.choice(SUMS).format(a=a, b=b), str(a + b)))
            found.append((draw.choice(DIFFERENCES).format(a=a, b=b), str(a - b)))
    return found


def talks(questions: list[tuple[str, str]], draw: random.Random) -> list[list[dict[str, str]]]:
    """All questions in a random order, one to three in a conversation, every other one with a system's message."""
    draw.shuffle(questions)
    found, rest = [], iter(questions)
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
    pairs = list(itertools.product(range(LARGEST + 1), repeat=2))
    itself = [((opener + q).capitalize(), a) for qs, a in ITSELF.items() for opener in OPENERS for q in qs]
    draw.shuffle(pairs)
    draw.shuffle(itself)
    held_pairs, held_itself = int(len(pairs) * HELD_OUT), int(len(itself) * HELD_OUT)
    train = arithmetic(pairs[held_pairs:], draw, 3) + itself[held_itself:] * 3
    test = [*arithmetic(pairs[:held_pairs], draw, 1), *itself[:held_itself]]
    single = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in test]
    for name, found in (("train", talks(train, draw)), ("test", single)):
        lines = "".join(json.dumps({"messages": messages}) + "\n" for messages in found)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        print(f"{folder / name}.jsonl: {len(found)} conversations")


if __name__ == "__main__":
    main()
