"""Conversations for the demonstration in docs/chat.md: sums and differences of digits, and questions about gpt2c.

    python python/make_talks.py FOLDER     writes train.jsonl, val.jsonl, test.jsonl and pairs.jsonl

No question of val.jsonl and test.jsonl is in another file, though its two numbers are, in other words; those numbers
that pairs.jsonl asks for stand beside each other in no other file, in whichever order and words, added or subtracted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PAIRS, TEST, VAL = 5, 0.1, 0.05  # held out: pairs of digits, and of the other questions these shares
ROUNDS = 2  # times that a question comes in train.jsonl, in another conversation each
# Questions of a conversation. Mostly one: where a question stands at the same place each time, it is soon learned where
# to look for it, and then for a later one.
COUNTS = (1, 1, 1, 1, 1, 1, 2, 3, 4)

OPENERS = ("", "Hi! ")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SUMS = ("{a} + {b}?", "{a} plus {b}?", "What is {a} + {b}?", "Add {b} to {a}.", "{A} plus {B}?")
DIFFERENCES = ("{a} - {b}?", "{a} minus {b}?", "What is {a} - {b}?", "Take {b} from {a}.", "{A} minus {B}?")
ITSELF = {
    ("Who are you?", "What is your name?", "May I ask your name?"): "I am gpt2c.",
    ("What are you?", "What kind of thing are you?", "Are you a human?"): "I am a small GPT-2.",
    ("Who made you?", "Where are you from?", "How did you come about?"): "I was trained from scratch.",
    ("What can you do?", "What are you good at?", "How can you help?"): "I add and subtract.",
}


class Question(NamedTuple):
    """pair: the two numbers, the smaller one first; empty if there are none."""

    text: str
    answer: str
    pair: tuple[int, ...] = ()


def questions() -> list[Question]:
    """All questions with their answers."""
    found = [Question(text, answer) for group, answer in ITSELF.items() for text in group]
    for a, b in itertools.product(range(10), repeat=2):
        for wordings, sign, result in ((SUMS, "+", a + b), (DIFFERENCES, "-", a - b)):
            texts = [wording.format(a=a, b=b, A=DIGITS[a], B=DIGITS[b]) for wording in wordings]
            pair = (min(a, b), max(a, b))
            found += [Question(text, f"{a} {sign} {b} = {result}", pair) for text in texts]
    return [question._replace(text=opener + question.text) for opener in OPENERS for question in found]


def talks(asked: Sequence[Question], draw: random.Random) -> list[list[dict[str, str]]]:
    """The questions in their order, in conversations of COUNTS, the last one perhaps shorter."""
    found, rest = [], iter(asked)
    while part := list(itertools.islice(rest, draw.choice(COUNTS))):
        said = [(("user", question.text), ("assistant", question.answer)) for question in part]
        found.append([{"role": role, "content": text} for both in said for role, text in both])
    return found


def write(path: Path, conversations: Sequence[list[dict[str, str]]]) -> None:
    lines = "".join(json.dumps({"messages": messages}) + "\n" for messages in conversations)
    path.write_text(lines, encoding="utf-8")
    replies = sum(message["role"] == "assistant" for messages in conversations for message in messages)
    print(f"{path}: {replies:,} replies in {len(conversations):,} conversations")


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(args).folder
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(7)
    new = draw.sample(list(itertools.combinations(range(10), 2)), PAIRS)
    known = [question for question in questions() if question.pair not in new]
    draw.shuffle(known)
    test, val = int(len(known) * TEST), int(len(known) * (TEST + VAL))
    learned = known[val:]
    rounds = [question for _ in range(ROUNDS) for question in draw.sample(learned, len(learned))]
    write(folder / "train.jsonl", talks(rounds, draw))
    write(folder / "val.jsonl", talks(known[test:val], draw))
    write(folder / "test.jsonl", talks(known[:test], draw))
    # Alone: a conversation would give the answer away, to the same question in other words.
    alone = [question for question in questions() if question.pair in new]
    write(folder / "pairs.jsonl", [talk for question in alone for talk in talks([question], draw)])


if __name__ == "__main__":
    main()
