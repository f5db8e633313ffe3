"""`gpt2c tokenizer train`; its fields are its flags."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gpt2c.data.inputs import FIELD, open_inputs, require_outside
from gpt2c.data.rows import Rows
from gpt2c.errors import UserError
from gpt2c.program import program, quoted
from gpt2c.tokenizer import get_tokenizer, save_tokenizer
from gpt2c.tokenizer.learn import learn

SAMPLE = 1 << 20  # characters on which the tokenizers are compared


@dataclass(frozen=True)
class Tokenizer:
    """Make a tokenizer of your own: learn a byte-level BPE from texts, for `gpt2c prepare` and `gpt2c train`."""

    action: Annotated[Literal["train"], tyro.conf.Positional]
    """What to do: `train`."""
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...")]
    """Text, .jsonl, .json, .csv, .parquet files, also packed, folders of them, `-`, hf:NAME[:CONFIG], as in prepare."""
    out: Path
    """Folder, new or empty, for tokenizer.json and the other files that Hugging Face's libraries load."""
    vocab_size: int = 4096
    """Number of ids, 257 to 65536; the last one is the end of a text."""
    field: str = FIELD
    """The text's field of JSON rows, column of a CSV or Parquet file or of a data set."""
    leave_out_bad_rows: bool = False
    """Leave out rows without a text (null, missing, damaged, not UTF-8), and count them."""

    def run(self) -> int:
        """Write the folder, and say how much shorter than with other tokenizers texts become."""
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise UserError(f"{self.out} is not empty: choose another folder with --out")
        require_outside(self.out, self.inputs)
        head: list[str] = []
        rows = Rows(self.field, self.leave_out_bad_rows)
        tokenizer = learn(self._texts(rows, head), self.vocab_size, str(self.out))
        if not any(head):
            raise UserError(f"{' '.join(self.inputs)} gives no text to learn from")
        save_tokenizer(tokenizer, self.out)
        if rows.left_out:
            warnings.warn(rows.summary, stacklevel=2)
        print(f"{self.out}: {tokenizer.vocab_size:,} ids, learned from {', '.join(self.inputs)}")
        sample = "".join(head)[:SAMPLE]
        size = len(sample.encode())
        rates = {"this": tokenizer, "gpt2": get_tokenizer("gpt2"), "bytes": get_tokenizer("bytes")}
        shown = (f"{size / len(of.encode(sample)):.2f} ({name}, {of.vocab_size:,} ids)" for name, of in rates.items())
        print(f"bytes a token on the texts' first {size / 1e6:.1f} MB: {', '.join(shown)}")
        print(f"use it: {program()} prepare or {program()} train with --tokenizer {quoted(self.out)}")
        return 0

    def _texts(self, rows: Rows, head: list[str]) -> Iterator[str]:
        """All texts; the first ones are kept in `head`."""
        kept = 0
        for source in open_inputs(self.inputs, rows):
            for text in source:
                if kept < SAMPLE:
                    head.append(text.text)
                    kept += len(text.text)
                yield text.text
