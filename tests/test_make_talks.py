"""python/make_talks.py: its answers are right, and what is held out is."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import tiny

sys.path.insert(0, str(tiny.REPOSITORY / "python"))

import make_talks

FILES = ("train", "val", "test", "pairs")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, str]]]:
    """Questions with their answers by file."""
    folder = tmp_path_factory.mktemp("talks")
    make_talks.main([str(folder)])
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in FILES}
    for name in FILES:
        for line in (folder / f"{name}.jsonl").read_text().splitlines():
            texts = [message["content"] for message in json.loads(line)["messages"]]
            found[name] += zip(texts[::2], texts[1::2], strict=True)
    return found


def numbers(answer: str) -> tuple[int, ...]:
    """The pair that an answer is about; none if it is about the model."""
    return tuple(sorted(int(word) for word in answer.partition(" =")[0].split() if word.isdigit()))


def test_no_question_is_in_two_files(asked: dict[str, list[tuple[str, str]]]) -> None:
    questions = {name: {question for question, _ in pairs} for name, pairs in asked.items()}
    assert sum(map(len, questions.values())) == len(set().union(*questions.values())) == 2 * (1000 + 12)
    pairs = {name: {numbers(answer) for _, answer in found} for name, found in asked.items()}
    assert len(pairs["pairs"]) == 5 and not pairs["pairs"] & (pairs["train"] | pairs["val"] | pairs["test"])
    assert pairs["test"] <= pairs["train"], "only the words are new"
    assert len(asked["train"]) == 2 * len(questions["train"])


def test_answers_are_right(asked: dict[str, list[tuple[str, str]]]) -> None:
    sums = [answer for found in asked.values() for _, answer in found if numbers(answer)]
    assert len(sums) > 3000
    for answer in sums:
        a, sign, b, result = re.fullmatch(r"(\d) ([+-]) (\d) = (-?\d+)", answer).groups()
        assert int(result) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
    assert ("Hi! Take 2 from 9.", "9 - 2 = 7") in {pair for found in asked.values() for pair in found}


def test_it_is_the_same_each_time(tmp_path: Path) -> None:
    for name in "ab":
        make_talks.main([str(tmp_path / name)])
    for name in FILES:
        assert (tmp_path / f"a/{name}.jsonl").read_bytes() == (tmp_path / f"b/{name}.jsonl").read_bytes()
