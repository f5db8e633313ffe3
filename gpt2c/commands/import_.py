"""`gpt2c import`; its fields are its flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gpt2c.errors import UserError
from gpt2c.formats import hf, llmc
from gpt2c.formats.kinds import describe, format_to_write, kind_of
from gpt2c.load import extend, fit_tokenizer
from gpt2c.program import program, quoted


@dataclass(frozen=True)
class Import:
    """Read a model of another program's into a folder for `gpt2c sample`, `eval` and `train --init`."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A Hugging Face folder or hub name, or a checkpoint of llm.c's."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The folder to write, which must not exist."""
    format: Literal["auto", "hf", "llmc"] = "auto"
    """What SOURCE is; `auto`: llm.c's if it is a file, else Hugging Face's."""

    def run(self) -> int:
        """Write the folder, and say how it is used."""
        if self.out.exists():
            raise UserError(f"{self.out} exists: choose another name, or remove it")
        format_to_write(self.out, "import")
        source = Path(self.source)
        if source.is_file() and kind_of(source) not in ("llmc", None):
            raise UserError(f"{source} is {describe(source)}")
        if self.format == "llmc" or (self.format == "auto" and source.is_file()):
            model = llmc.load(source)
            tokenizer = fit_tokenizer(model, source.parent)
        else:
            model, tokenizer = hf.load(self.source)
        extend(model, tokenizer)
        hf.export(model, tokenizer, self.out)
        name = quoted(self.out)
        print(
            f"{self.out}: a GPT-2 of {model.num_parameters():,} parameters with the tokenizer {tokenizer.name}; "
            f"use it: {program()} sample {name}, or "
            f"{program()} train --init {name} --context {model.config.n_positions} --data ..."
        )
        return 0
