"""What all sources of rows share: each row is a document, and bad ones may be left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpt2c.data.sources import Text
from gpt2c.errors import UserError
from gpt2c.words import counted


class BadRow(UserError):
    """A row without a text: one that is null, missing, damaged, or that UTF-8 cannot hold."""


@dataclass
class Rows:
    """Which texts are taken from rows: those of `field`. leave_out: whether bad rows are left out, and counted in
    `left_out`, or else end the reading. first: what is wrong with the first of them."""

    field: str
    leave_out: bool = False
    left_out: int = 0
    first: str = ""

    @property
    def summary(self) -> str:
        """How many are left out, as words."""
        return f"{counted(self.left_out, 'row')} left out" + (f"; the first: {self.first}" if self.first else "")

    def taken(self, read: Callable[[], Text | None]) -> Text | None:
        """The text that `read` gives; None for a bad row that is left out. Raises UserError for another one."""
        try:
            return read()
        except BadRow as error:
            if not self.leave_out:
                raise UserError(
                    f"{error}; mend it, or leave such rows out with gpt2c prepare --leave-out-bad-rows"
                ) from error
            self.left_out += 1
            self.first = self.first or str(error)
            return None

    def document(self, row: Any, where: str) -> Text:
        """A row's text. BadRow if it has none, or one that UTF-8 cannot hold."""
        if not isinstance(row, dict) or self.field not in row:
            found = f"the fields {', '.join(row)}" if isinstance(row, dict) else type(row).__name__
            raise BadRow(
                f"{where} has no field {self.field!r}: found {found}, name the text's field with gpt2c prepare --field"
            )
        text = row[self.field]
        if not isinstance(text, str):
            raise BadRow(f"{where} has a {self.field!r} that is no text: found {type(text).__name__}")
        try:
            return Text(text, True, len(text.encode("utf-8")))
        except UnicodeEncodeError as error:
            half = ascii(text[error.start])
            raise BadRow(f"{where} has half of a character, {half}: expected UTF-8 text") from error
