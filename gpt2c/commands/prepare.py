"""`gpt2c prepare`; its fields are its flags."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from gpt2c.data.encode import cores
from gpt2c.data.prepare import Settings, prepare
from gpt2c.errors import UserError
from gpt2c.program import program


@dataclass(frozen=True)
class Prepare:
    """Turn texts into token shards, once, for `gpt2c train --data FOLDER`.

    Ctrl-C stops; the same command goes on after the last complete shard, and writes the same bytes as if never stopped.
    """

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="INPUT...")]
    """Text, .jsonl or .parquet files, also .gz, .bz2, .xz or .zst, folders of them, `-`, or hf:NAME[:CONFIG]."""
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
    field: str = "text"
    """The text's field of a JSON line, column of a Parquet file or of a data set."""

    def run(self) -> int:
        """Write the shards, and show how fast on a terminal."""
        if self.workers < 0:
            raise UserError(f"--workers is {self.workers}, expected at least 0")
        settings = Settings(list(self.inputs), self.tokenizer, self.shard_tokens, self.val_tokens, self.field)
        tokens = 0
        with tqdm(unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar:

            def progress(bytes_more: int, tokens_more: int) -> None:
                nonlocal tokens
                tokens += tokens_more
                bar.set_postfix_str(f"{tokens:,} tokens", refresh=False)
                bar.update(bytes_more)

            try:
                done = prepare(settings, self.out, self.workers or cores(), progress)
            except KeyboardInterrupt:
                bar.write("stopped; the same command goes on after the last complete shard", file=sys.stderr)
                raise
        if not tokens:
            print(f"nothing to do: {self.out} is complete")
        count = f"{done.tokens:,} tokens in {len(done.shards)} shards"
        print(f"{done.documents:,} documents, {done.bytes:,} bytes, {count}")
        out, tokenizer = shlex.quote(str(self.out)), shlex.quote(self.tokenizer)
        print(f"train on it: {program()} train --data {out} --tokenizer {tokenizer}")
        return 0
