"""`gpt2c train`; its fields are its flags."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from gpt2c.output import unheeded
from gpt2c.program import program, quoted
from gpt2c.settings import TrainConfig
from gpt2c.train import Result, train
from gpt2c.words import counted


@dataclass(frozen=True)
class Train:
    """Train a GPT-2 and write what it learned.

    Ctrl-C stops after the current step with a checkpoint; --resume goes on from there, bit for bit as if never stopped.
    """

    settings: tyro.conf.OmitArgPrefixes[TrainConfig]
    recipe: str
    """Settings that the flags change: `demo`, `shakespeare-bytes`, another of docs/recipes.md, or your TOML file."""
    resume: bool = False
    """Go on from the latest checkpoint in --out, with the run's settings; steps and the `every` flags may change."""

    def run(self) -> int:
        """Train, then show a text and where everything is. Returns 0, or 128 + the signal that stopped the run."""
        with unheeded():
            result = train(self.settings, self.resume)
            return tell(result, self.settings, f"more text: {program()} sample {quoted(result.run.folder)}")


def tell(result: Result, settings: TrainConfig, next_step: str) -> int:
    """Say how the run has ended; returns the exit code."""
    if not result.is_first:
        return 0 if result.stopped_by is None else 128 + result.stopped_by
    folder = result.run
    if result.stopped_by is not None:
        print(f"stopped after step {result.step} of {settings.steps} with the checkpoint {result.checkpoint}")
        print(f"resume with: {program()} {settings.command} --out {quoted(folder.folder)} --resume")
        return 128 + result.stopped_by
    if result.sample is None:
        print(f"nothing to do: {folder.folder} has reached step {result.step}, give more --steps to go on")
    else:
        print(f"\nWhat the model writes after {counted(result.step, 'step')}:\n\n{result.sample}\n")
    print(f"checkpoint  {result.checkpoint}\nmetrics     {folder.metrics}\nloss curve  {folder.curve}")
    print(next_step)
    return 0
