"""What translate.py learns: numbers in words to digits, and dates of several forms to one, with their alignment."""

from __future__ import annotations

import datetime
import random
import zlib
from collections.abc import Iterator
from typing import NamedTuple

ONES = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
MONTHS = (
    "january february march april may june july august september october november december"
).split()  # fmt: skip
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth"
).split()
DIGITS, SIGNS, LITTLE_WORDS = "0123456789", "-/,", ("hundred", "thousand", "the", "of", "thirtieth")
WORDS = (*ONES, *TEENS, *TENS, *MONTHS, *ORDINALS, *DIGITS, *SIGNS, *LITTLE_WORDS)

FIRST, LAST = datetime.date(1600, 1, 1).toordinal(), datetime.date(2199, 12, 31).toordinal()
MOST_DIGITS, ZERO_OFTEN = 6, [4] + [1] * 9
HELD_OUT = 10  # one target in so many is never trained on


class Pair(NamedTuple):
    """alignment: for each character of the target the index of the source token that it comes from, or None where
    there is none: a sign, or a zero that no word stands for."""

    source: list[str]
    target: str
    alignment: list[int | None]


def number(n: int) -> Pair:
    """0 <= n < 10^6: `three hundred forty two thousand seven` to `342007`."""
    if n == 0:
        return Pair(["zero"], "0", [0])
    thousands, rest = divmod(n, 1000)
    words, where = _below_1000(thousands)
    words += ["thousand"] * (thousands > 0)
    more, there = _below_1000(rest)
    where += [None if at is None else at + len(words) for at in there]
    return Pair(words + more, str(n), where[-len(str(n)) :])


def _below_1000(n: int) -> tuple[list[str], list[int | None]]:
    """The words of n, none for 0, and for each of its three digits the index of its word."""
    hundreds, tens, ones = n // 100, n // 10 % 10, n % 10
    words, where = [], [None] * 3
    if hundreds:
        where[0], words = 0, [ONES[hundreds], "hundred"]
    if tens == 1:
        where[1] = where[2] = len(words)
        return [*words, TEENS[ones]], where
    if tens:
        where[1] = len(words)
        words.append(TENS[tens])
    if ones:
        where[2] = len(words)
        words.append(ONES[ones])
    return words, where


def date(day: datetime.date, form: int) -> Pair:
    """A day in one of four forms to ISO 8601: `23 march 1984`, `march 23, 1984`, `23/03/1984` and
    `the twenty third of march 1984` to `1984-03-23`."""
    iso, month = day.isoformat(), [MONTHS[day.month - 1]]
    days, year = list(str(day.day)), list(f"{day.year:04}")
    if form == 0:
        parts = {"day": days, "month": month, "year": year}
    elif form == 1:
        parts = {"month": month, "day": days, ",": [","], "year": year}
    elif form == 2:
        parts = {"day": list(iso[8:]), "/": ["/"], "month": list(iso[5:7]), "//": ["/"], "year": year}
    else:
        parts = {"the": ["the"], "day": _ordinal(day.day), "of": ["of"], "month": month, "year": year}
    source, start = [], {}
    for name, tokens in parts.items():
        start[name] = len(source)
        source += tokens
    where: list[int | None] = [start["year"] + i for i in range(4)]
    for name, digits in (("month", iso[5:7]), ("day", iso[8:])):
        where += [None, *_two_digits(digits, parts[name], start[name])]
    return Pair(source, iso, where)


def _ordinal(n: int) -> list[str]:
    if n <= 20:
        return [ORDINALS[n - 1]]
    return ["thirtieth"] if n == 30 else [TENS[n // 10], ORDINALS[n % 10 - 1]]


def _two_digits(digits: str, tokens: list[str], start: int) -> list[int | None]:
    """Where both digits come from: a token each, or both from one word; the zero of `03` from nowhere."""
    if len(tokens) == 2:
        return [start, start + 1]
    return [None if digits[0] == "0" else start, start]


def is_held_out(pair: Pair) -> bool:
    """By a hash of the target alone: no form of a held-out date or number is ever trained on."""
    return zlib.crc32(pair.target.encode()) % HELD_OUT == 0


def pairs(seed: int, held_out: bool) -> Iterator[Pair]:
    """Without end: numbers of up to 6 digits, of which nearly a third are zeros, since these have no word and are the
    hard ones, and dates of the years 1600 to 2199, half and half."""
    rng = random.Random(seed)
    while True:
        if rng.random() < 0.5:
            digits = rng.choices(DIGITS, ZERO_OFTEN, k=rng.randint(1, MOST_DIGITS))
            pair = number(int("".join(digits)))
        else:
            pair = date(datetime.date.fromordinal(rng.randint(FIRST, LAST)), rng.randrange(4))
        if is_held_out(pair) == held_out:
            yield pair
