"""`gpt2c prepare`; its fields are its flags."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from gpt2c.data.encode import cores
from gpt2c.data.inputs import FIELD
from gpt2c.data.prepare import Progress, Settings, prepare
from gpt2c.errors import UserError
from gpt2c.program import program, quoted
from gpt2c.words import counted, duration

# Without a terminal: a line when this much of the time and of the inputs, or of the time so far, has passed.
SECONDS_PER_LINE = 10.0
SHARE_PER_LINE = 0.01


@dataclass(frozen=True)
class Prepare:
    """Turn texts into token shards, once, for `gpt2c train --data FOLDER`.

    Ctrl-C stops; the same command goes on after the last complete shard, and writes the same bytes as if never stopped.
    """

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...")]
    """Text, .jsonl, .json, .csv or .parquet files, also packed, folders of them, `-`, or hf:NAME[:CONFIG]."""
    out: Path
    """Folder for the shards and manifest.json, new or empty, or of the same command that was interrupted."""
    tokenizer: str = "gpt2"
    """How text becomes tokens: `gpt2`, `bytes`, or the folder of a tokenizer of your own."""
    shard_tokens: int = 100_000_000
    """Tokens in a shard, 2 bytes each; the last one may have fewer."""
    val_tokens: int = 0
    """Number of first tokens that become the validation shard; 0 for none: training keeps its val_fraction then."""
    workers: int = 0
    """Processes that tokenise; 0 for one per core. The bytes written are the same for any number."""
    field: str = FIELD
    """The text's field of JSON rows, column of a CSV or Parquet file or of a data set."""
    leave_out_bad_rows: bool = False
    """Leave out rows without a text (null, missing, damaged, not UTF-8), and count them; else the first one is told."""

    def run(self) -> int:
        """Write the shards, and show how far it is."""
        if self.workers < 0:
            raise UserError(f"--workers is {self.workers}, expected at least 0")
        settings = Settings(list(self.inputs), self.tokenizer, self.shard_tokens, self.val_tokens, self.field)
        with Display() as display:
            try:
                done = prepare(settings, self.out, self.workers or cores(), display.update, self.leave_out_bad_rows)
            except KeyboardInterrupt:
                display.note("stopped; the same command goes on after the last complete shard")
                raise
        if not display.tokens:
            print(f"nothing to do: {self.out} is complete")
        left_out = f", {counted(done.left_out, 'row')} left out" if done.left_out else ""
        size = f"{counted(done.documents, 'document')}, {counted(done.bytes, 'byte')}{left_out}"
        print(f"{size}, {counted(done.tokens, 'token')} in {counted(len(done.shards), 'shard')}")
        out, tokenizer = quoted(self.out), quoted(self.tokenizer)
        print(f"train on it: {program()} train --data {out} --tokenizer {tokenizer}")
        return 0


class Display:
    """How far a preparation is: a bar on a terminal, else a line on stderr now and then."""

    def __init__(self) -> None:
        self.tokens = 0
        self._bytes = 0
        self._begun = self._first_at = self._shown_at = time.monotonic()
        self._first: int | None = None  # bytes of the inputs that had been read when the first batch came
        self._shown = 0.0
        self._bar = tqdm(unit="B", unit_scale=True, disable=not sys.stderr.isatty())

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def update(self, done: Progress) -> None:
        """A batch more is done."""
        self.tokens += done.tokens
        self._bytes += done.bytes
        if not self._bar.disable:
            self._bar.total = done.size
            self._bar.set_postfix_str(counted(self.tokens, "token"), refresh=False)
            self._bar.update((self._bytes if done.size is None else done.consumed) - self._bar.n)
            return
        now = time.monotonic()
        if self._first is None:
            self._first, self._first_at = done.consumed, now
        passed, share = now - self._begun, done.consumed / done.size if done.size else 0.0
        more = share - self._shown if done.size else (now - self._shown_at) / passed
        if now - self._shown_at < SECONDS_PER_LINE or more < SHARE_PER_LINE:
            return
        self._shown_at, self._shown = now, share
        speed = f"{counted(self.tokens, 'token')}, {self._bytes / passed / 1e6:.1f} MB/s"
        if not done.size:
            self.note(f"{self._bytes / 1e6:,.1f} MB  {speed}")
            return
        since, left = done.consumed - self._first, ""
        if since:
            left = f"  {duration((now - self._first_at) / since * (done.size - done.consumed))} left"
        self.note(f"{share:.0%} of {done.size / 1e6:,.1f} MB  {speed}{left}")

    def note(self, text: str) -> None:
        """A line of its own."""
        self._bar.write(text, file=sys.stderr)
