"""`gpt2c sft`; its fields are its flags."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from gpt2c.chat.settings import SftConfig
from gpt2c.commands.train import tell
from gpt2c.output import unheeded
from gpt2c.program import program, quoted
from gpt2c.train import train


@dataclass(frozen=True)
class Sft:
    """Fine-tune a model on conversations, so that `gpt2c chat` can talk to it.

    It learns what the assistant says, all weights or with --lora-rank a few. Ctrl-C and --resume as in `gpt2c train`.
    """

    settings: tyro.conf.OmitArgPrefixes[SftConfig]
    recipe: str
    """Settings that the flags change: `sft`, `sft-demo`, or a TOML file with the fields as keys."""
    resume: bool = False
    """Go on from the latest checkpoint in --out, with the run's settings; steps and the `every` flags may change."""

    def run(self) -> int:
        """Train, then show a reply and where everything is. Returns 0, or 128 + the signal that stopped the run."""
        with unheeded():
            result = train(self.settings, self.resume)
            return tell(result, self.settings, f"talk to it: {program()} chat {quoted(result.run.folder)}")
