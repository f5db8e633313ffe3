"""Checkpoints: a model in Hugging Face's format, and beside it what training needs to go on bit for bit. Never pickle.

    <run>/checkpoints/step_000123/
        config.json, model.safetensors    the model: GPT2.from_pretrained and transformers load them
        tokenizer.json, ...               the tokenizer, if it is one of the user's own
        adapter/                          with LoRA: A and B, as the library peft has them; the model is their sum
        training.safetensors              AdamW's moments and masters by parameter name
        training.json                     step, tokenizer, validation loss, seconds, sizes of the run's growing files,
                                          and the SHA-256 of each file beside it and of itself

A checkpoint is written into a hidden folder, flushed to the disk and renamed: `step_*` is always whole. What the disk
or a hand changes afterwards is noticed by the hashes, before anything goes on from it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gpt2c.errors import UserError, reason
from gpt2c.files import fsync, reading, save_tensors, writing
from gpt2c.optim_options import STATE

TENSORS, RECORD = "training.safetensors", "training.json"
DIGEST = "sha256_of_record"


@dataclass(frozen=True)
class Record:
    """training.json. `files` maps names to sizes in bytes, `optimizer` holds AdamW's state that is not tensors, `guard`
    and `loss_scale` the states of gpt2c.spikes and gpt2c.precision, `sha256` the hashes of the files beside it."""

    step: int
    tokenizer: str
    val_loss: float | None
    seconds: float
    files: dict[str, int]
    guard: dict[str, Any] = field(default_factory=dict)
    loss_scale: dict[str, float] = field(default_factory=dict)
    optimizer: dict[str, float] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)


def save(
    run: Path, write_model: Callable[[Path], None], model: nn.Module, optimizer: torch.optim.Optimizer, record: Record
) -> Path:
    """Write the checkpoint of `record.step` and return its folder. UserError if it cannot be written; then nothing is
    left behind.

    write_model: writes, into a folder, what the model is loaded from: weights, sizes, tokenizer.
    """
    final = folder_of(run) / f"step_{record.step:06d}"
    temporary = final.with_name(f".{final.name}.tmp")
    tensors, numbers = _optimizer_state(model, optimizer)
    with writing(final):
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed here
            temporary.mkdir(parents=True)
            write_model(temporary)
            (temporary / TENSORS).touch()
            mode = (temporary / TENSORS).stat().st_mode
            save_tensors(tensors, temporary / TENSORS)
            (temporary / TENSORS).chmod(mode)  # safetensors makes files that only their owner can read
            files = sorted(path for path in temporary.rglob("*") if path.is_file())
            hashes = {path.relative_to(temporary).as_posix(): sha256(path) for path in files}
            contents = {**asdict(record), "optimizer": numbers, "sha256": hashes}
            text = json.dumps({**contents, DIGEST: _digest(contents)}, indent=2) + "\n"
            (temporary / RECORD).write_text(text, encoding="utf-8")
            for file in (temporary / TENSORS, temporary / RECORD, temporary):
                fsync(file)
            os.rename(temporary, final)
            fsync(final.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return final


def verify(checkpoint: Path) -> None:
    """Compare a checkpoint's files with their hashes. UserError names the damaged one and the checkpoint before it."""
    for name, expected in read_record(checkpoint).sha256.items():
        path = checkpoint / name
        with reading("checkpoint's", path):
            found = sha256(path)
        if found != expected:
            raise UserError(
                f"{path} is damaged: its SHA-256 is {found[:12]}..., expected {expected[:12]}... as when written; "
                f"{_instead_of(checkpoint)}"
            )


def sha256(path: Path) -> str:
    """A file's SHA-256 in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()


def _instead_of(checkpoint: Path) -> str:
    """What can be done about a damaged checkpoint, as words."""
    run = checkpoint.parent.parent
    others = [path for path in list_all(run) if path.name < checkpoint.name] if checkpoint.name[:5] == "step_" else []
    if not others:
        return "there is none before it"
    return f"remove the folder {checkpoint.name} to go on from {others[-1].name}, the one before it"


def restore(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's moments back; `model` has been loaded from it, `optimizer` is new."""
    path = checkpoint / TENSORS
    with reading("training state", path):
        tensors = load_file(path)
    numbers = read_record(checkpoint).optimizer
    names, state = _names(model, optimizer), _empty_state(optimizer)
    index = {name: i for i, name in enumerate(names)}
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    for key, value in {**tensors, **numbers}.items():
        entry, _, name = key.partition(".")
        if (
            entry not in STATE
            or name not in index
            or (isinstance(value, Tensor) and value.ndim and value.shape != shapes[name])
        ):
            raise UserError(f"{path}: {key} does not belong to the model beside it, the checkpoint is damaged")
        state["state"][index[name]][entry] = value
    missing = [name for name in names if not {"exp_avg", "exp_avg_sq", "step"} <= state["state"][index[name]].keys()]
    if not tensors and not numbers:  # every update so far was skipped
        state["state"] = {}
    elif missing:
        raise UserError(f"{path} is damaged: it lacks the state of {missing[0]}")
    try:
        optimizer.load_state_dict(state)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {reason(error)}") from error


def read_record(checkpoint: Path) -> Record:
    """A checkpoint's training.json; UserError if it is missing, is none, or has changed since it was written."""
    path = checkpoint / RECORD
    with reading("training record", path):
        text = path.read_bytes()
    try:
        contents = json.loads(text)
        has_hashes = "sha256" in contents  # those of the first versions have none, of anything
        digest = contents.pop(DIGEST) if has_hashes else _digest(contents)
        record = Record(**contents)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged: expected the record of a gpt2c checkpoint; {_instead_of(checkpoint)}"
        ) from error
    if digest != _digest(contents):
        raise UserError(f"{path} is damaged: it has changed since it was written; {_instead_of(checkpoint)}")
    return record


def _digest(contents: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


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


def _names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Parameter names in the order in which the optimizer's state_dict numbers them."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _empty_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state_dict() without moments; not asked of itself, since one that is sharded has none."""
    count, groups = 0, []
    for group in optimizer.param_groups:
        numbers = list(range(count, count + len(group["params"])))
        groups.append({**group, "params": numbers})
        count += len(numbers)
    return {"state": {i: {} for i in range(count)}, "param_groups": groups}


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The optimizer's state as `<entry>.<parameter name>`: tensors, and plain numbers."""
    names, state = _names(model, optimizer), optimizer.state_dict()["state"]

    def entries() -> Iterator[tuple[str, Any]]:
        for i, of_parameter in state.items():
            for entry, value in of_parameter.items():
                yield f"{entry}.{names[i]}", value

    tensors = {key: value.contiguous() for key, value in entries() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in entries() if not isinstance(value, Tensor)}
