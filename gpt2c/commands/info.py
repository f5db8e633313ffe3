"""`gpt2c info`; its fields are its flags."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

import gpt2c
from gpt2c import _native, checkpoint
from gpt2c.model import GPT2


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
