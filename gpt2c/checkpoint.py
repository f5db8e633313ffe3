"""Checkpoints: a model in Hugging Face's format, and beside it what training needs to go on bit for bit. Never pickle.

    <run>/checkpoints/step_000123/
        config.json, model.safetensors    the model: GPT2.from_pretrained and transformers load them
        training.safetensors              AdamW's moments and masters by parameter name, the random generator's state
        training.json                     step, tokenizer, validation loss, seconds, sizes of the run's growing files

A checkpoint is written into a hidden folder, flushed to the disk and renamed: `step_*` is always whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gpt2c.errors import UserError, reason
from gpt2c.files import fsync, reading, writing
from gpt2c.model import GPT2

RNG = "rng.torch"
TENSORS, RECORD = "training.safetensors", "training.json"


@dataclass(frozen=True)
class Record:
    """training.json. `optimizer` holds AdamW's state that is not tensors; `files` maps names to sizes in bytes."""

    step: int
    tokenizer: str
    val_loss: float | None
    seconds: float
    files: dict[str, int]
    optimizer: dict[str, float] = field(default_factory=dict)


def save(run: Path, model: GPT2, optimizer: torch.optim.Optimizer, record: Record) -> Path:
    """Write the checkpoint of `record.step` and return its folder. UserError if it cannot be written; then nothing is
    left behind."""
    final = folder_of(run) / f"step_{record.step:06d}"
    temporary = final.with_name(f".{final.name}.tmp")
    tensors, numbers = _optimizer_state(model, optimizer)
    tensors[RNG] = torch.get_rng_state()
    with writing(final):
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed here
            temporary.mkdir(parents=True)
            model.save_pretrained(temporary)
            (temporary / TENSORS).touch()
            mode = (temporary / TENSORS).stat().st_mode
            save_file(tensors, temporary / TENSORS)
            (temporary / TENSORS).chmod(mode)  # safetensors makes files that only their owner can read
            contents = {**asdict(record), "optimizer": numbers}
            (temporary / RECORD).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
            for file in (temporary / TENSORS, temporary / RECORD, temporary):
                fsync(file)
            os.rename(temporary, final)
            fsync(final.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return final


def restore(checkpoint: Path, model: GPT2, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's moments and random generator back; `model` has been loaded from it, `optimizer` is new."""
    path = checkpoint / TENSORS
    with reading("training state", path):
        tensors = load_file(path)
    numbers = read_record(checkpoint).optimizer
    names, state = _names(model, optimizer), optimizer.state_dict()
    state["state"] = {i: {} for i in range(len(names))}
    index = {name: i for i, name in enumerate(names)}
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    rng = tensors.pop(RNG, None)
    for key, value in {**tensors, **numbers}.items():
        entry, _, name = key.partition(".")
        if name not in index or (isinstance(value, Tensor) and value.ndim and value.shape != shapes[name]):
            raise UserError(f"{path}: {key} does not belong to the model beside it, the checkpoint is damaged")
        state["state"][index[name]][entry] = value
    missing = [name for name in names if not {"exp_avg", "exp_avg_sq", "step"} <= state["state"][index[name]].keys()]
    if missing or rng is None:
        raise UserError(f"{path} is damaged: it lacks the state of {missing[0] if missing else 'the random generator'}")
    try:
        optimizer.load_state_dict(state)
        torch.set_rng_state(rng)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {reason(error)}") from error


def read_record(checkpoint: Path) -> Record:
    """A checkpoint's training.json; UserError if it is missing or is none."""
    path = checkpoint / RECORD
    with reading("training record", path):
        text = path.read_bytes()
    try:
        return Record(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: expected the record of a gpt2c checkpoint") from error


def folder_of(run: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return run / "checkpoints"


def list_all(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    steps = {path: path.name.removeprefix("step_") for path in folder_of(run).glob("step_*")}
    return sorted((path for path, step in steps.items() if step.isdigit()), key=lambda path: int(steps[path]))


def latest(run: Path) -> Path | None:
    """The checkpoint with the most steps, or None."""
    return next(reversed(list_all(run)), None)


def best(run: Path) -> Path | None:
    """The checkpoint with the lowest validation loss, or None when none has been evaluated."""
    losses = {path: loss for path in list_all(run) if (loss := read_record(path).val_loss) is not None}
    return min(losses, default=None, key=lambda path: losses[path])


def prune(run: Path, keep: int) -> None:
    """Remove all but the `keep` latest checkpoints and the best one, and what an interrupted save left behind."""
    spared = {*list_all(run)[-keep:], best(run)}
    with writing(folder_of(run)):
        for path in list_all(run):
            if path not in spared:
                # Renamed first, so that no half-removed checkpoint is ever seen.
                path.rename(path.with_name(f".{path.name}.tmp"))
        for path in folder_of(run).glob(".step_*.tmp"):
            shutil.rmtree(path)


def resolve(name: str) -> str:
    """A run folder's best checkpoint, else its latest; any other name is given back: a checkpoint, or a hub name."""
    run = Path(name)
    if not folder_of(run).is_dir():
        return name
    found = best(run) or latest(run)
    if found is None:
        raise UserError(f"the run {name} has no checkpoint yet: train it further with --resume")
    return str(found)


def _names(model: GPT2, optimizer: torch.optim.Optimizer) -> list[str]:
    """Parameter names in the order in which the optimizer's state_dict numbers them."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _optimizer_state(model: GPT2, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The optimizer's state as `<entry>.<parameter name>`: tensors, and plain numbers."""
    names, state = _names(model, optimizer), optimizer.state_dict()["state"]

    def entries() -> Iterator[tuple[str, Any]]:
        for i, of_parameter in state.items():
            for entry, value in of_parameter.items():
                yield f"{entry}.{names[i]}", value

    tensors = {key: value.contiguous() for key, value in entries() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in entries() if not isinstance(value, Tensor)}
