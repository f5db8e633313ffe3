"""What `gpt2c train`, `gpt2c sample` and `gpt2c info` do; their fields are their flags."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

import gpt2c
from gpt2c import _native, checkpoint
from gpt2c.errors import UserError
from gpt2c.model import GPT2
from gpt2c.settings import TrainConfig
from gpt2c.tokenizer import StreamDecoder, Tokenizer, get_tokenizer, printable
from gpt2c.train import train


@dataclass(frozen=True)
class Train:
    """Train a GPT-2 and write what it learned.

    Ctrl-C stops after the current step with a checkpoint; --resume goes on from there, bit for bit as if never stopped.
    """

    settings: tyro.conf.OmitArgPrefixes[TrainConfig]
    preset: str
    """Settings that the flags change: `demo`, `shakespeare`, `gpt2-124m`, or a TOML file with the fields as keys."""
    resume: bool = False
    """Go on from the latest checkpoint in --out, with the run's settings; steps and the `every` flags may change."""

    def run(self) -> int:
        """Train, then show a text and where everything is. Returns 0, or 128 + the signal that stopped the run."""
        result = train(self.settings, self.resume)
        folder = result.run
        if result.stopped_by is not None:
            print(f"stopped after step {result.step} of {self.settings.steps} with the checkpoint {result.checkpoint}")
            print(f"resume with: gpt2c train --out {folder.folder} --resume")
            return 128 + result.stopped_by
        if result.sample is None:
            print(f"nothing to do: {folder.folder} has reached step {result.step}, give more --steps to go on")
        else:
            print(f"\nWhat the model writes after {result.step} steps:\n\n{result.sample}\n")
        print(f"checkpoint  {result.checkpoint}\nmetrics     {folder.metrics}\nloss curve  {folder.curve}")
        print(f"more text: gpt2c sample {folder.folder}")
        return 0


@dataclass(frozen=True)
class Sample:
    """Let a model write, shown token by token."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run (its best checkpoint is taken), a checkpoint, or any GPT-2 in Hugging Face's format or on its hub."""
    prompt: str = "\n"
    """The text to continue; the default is a line break, and an empty one starts from the end-of-text token."""
    max_new_tokens: int = 300
    """Length of each sample in tokens, at most: an end-of-text token ends it."""
    temperature: float = 0.8
    """Divides the logits: below 1 more likely, above 1 more surprising text; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Only the k likeliest tokens can come."""
    top_p: float | None = None
    """Only the likeliest tokens whose probabilities sum to this, above 0 and at most 1, can come."""
    seed: int | None = None
    """The same seed gives the same text; without one each call differs. Sample i of several has the seed + i."""
    num_samples: int = 1
    """Number of samples, one after the other."""
    weights: Literal["fp32", "bf16", "int8"] = "fp32"
    """What a token reads: the parameters, or a copy of a half or a quarter of their bytes, nearly as much faster."""

    def run(self) -> int:
        """Write the samples to the standard output."""
        if self.num_samples < 1:
            raise UserError(f"--num-samples is {self.num_samples}, expected at least 1")
        folder = checkpoint.resolve(self.model)
        model = GPT2.from_pretrained(folder)
        tokenizer = tokenizer_of(Path(folder), model)
        for i in range(self.num_samples):
            if self.num_samples > 1:
                print(f"--- sample {i + 1} ---")
            self._write(model, tokenizer, None if self.seed is None else self.seed + i)
        return 0

    def _write(self, model: GPT2, tokenizer: Tokenizer, seed: int | None) -> None:
        ids = tokenizer.encode(self.prompt).astype(np.int64) if self.prompt else np.array([tokenizer.end_of_text])
        decoder = StreamDecoder(tokenizer)
        try:
            tokens = model.stream(
                torch.from_numpy(ids)[None], self.max_new_tokens, self.temperature, self.top_k, self.top_p, seed,
                self.weights,
            )  # fmt: skip
            show(self.prompt)
            for token in map(int, tokens):
                if token == tokenizer.end_of_text:
                    break
                show(decoder.feed(token))
        except (TypeError, ValueError, IndexError) as error:  # a flag's value, or damaged weights, in one sentence
            raise UserError(str(error)) from error
        show(decoder.finish() + "\n")


@dataclass(frozen=True)
class Info:
    """Show versions, threads and kernels, and what a checkpoint holds."""

    model: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL]")] = None
    """A run (its best checkpoint is taken), a checkpoint, or any GPT-2 in Hugging Face's format or on its hub."""

    def run(self) -> int:
        """Write one fact a line to the standard output."""
        rows = {
            "gpt2c": getattr(gpt2c, "__version__", "not installed"),
            "torch": torch.__version__,
            "python": sys.version.split()[0],
            "threads": str(torch.get_num_threads()),
            "cpu kernels": f"{_native.active_isa()} (available: {', '.join(_native.available_isas())})",
            "cuda kernels": _native.cuda_status(),
        }
        if self.model is not None:
            rows |= model_rows(self.model)
        width = max(map(len, rows))
        for name, value in rows.items():
            print(f"{name:{width}}  {value}")
        return 0


def show(text: str) -> None:
    """Print a piece of text at once; a terminal gets no control characters from a model."""
    print(printable(text) if sys.stdout.isatty() else text, end="", flush=True)


def tokenizer_of(folder: Path, model: GPT2) -> Tokenizer:
    """The tokenizer a checkpoint was trained with; for a foreign model the one that has its vocabulary size."""
    if (folder / checkpoint.RECORD).exists():
        tokenizer = get_tokenizer(checkpoint.read_record(folder).tokenizer)
        if tokenizer.vocab_size == model.config.vocab_size:
            return tokenizer
    for name in ("gpt2", "bytes"):
        if get_tokenizer(name).vocab_size == model.config.vocab_size:
            return get_tokenizer(name)
    raise UserError(
        f"{folder} has a vocabulary of {model.config.vocab_size}, expected that of a known tokenizer: 50257 (gpt2) or "
        "257 (bytes)"
    )


def model_rows(name: str) -> dict[str, str]:
    """A model's sizes and, of a checkpoint, its training."""
    folder = checkpoint.resolve(name)
    model = GPT2.from_pretrained(folder)
    rows = {"model": folder, "parameters": f"{model.num_parameters():,}"}
    rows |= {field: str(value) for field, value in dataclasses.asdict(model.config).items()}
    if (Path(folder) / checkpoint.RECORD).exists():
        record = checkpoint.read_record(Path(folder))
        rows |= {"tokenizer": record.tokenizer, "steps": str(record.step), "seconds": f"{record.seconds:.0f}"}
        rows["validation loss"] = "not evaluated" if record.val_loss is None else f"{record.val_loss:.4f}"
    return rows
