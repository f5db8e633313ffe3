"""The tensors of a folder in Hugging Face's format, by GPT-2's names: model.safetensors or its shards. Never pickle."""

from __future__ import annotations

import json
import re
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from gpt2c.errors import UserError
from gpt2c.files import why
from gpt2c.formats.kinds import OF_WEIGHTS, describe, kind_of

WEIGHTS, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
CAUSAL_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # buffers in older files, not weights
# What training programs add to a tensor's name, and what does.
WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DistributedDataParallel",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "model": "a module around the model",
}


def open_tensors(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Tensor name, without `transformer.` and WRAPPERS, -> safetensors' slice, for all weights in the folder; none is
    read yet. A tensor that is stored under another one's name, as safetensors' save_model does, has both."""
    tensors: dict[str, Any] = {}
    wrappers: dict[str, str] = {}
    for path in _weight_files(folder):
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is not a whole safetensors file: {why(path, error)}") from error
        keys = {key: key for key in file.keys()}
        shared = {name: key for name, key in (file.metadata() or {}).items() if key in keys and name not in keys}
        for name, key in {**keys, **shared}.items():
            plain = _plain(name, wrappers)
            if plain in tensors:
                raise UserError(f"{folder} holds the tensor {plain} twice")
            if not CAUSAL_MASK.fullmatch(plain):
                tensors[plain] = file.get_slice(key)
    for wrapper, name in wrappers.items():
        warnings.warn(
            f"{folder}: the name {name} has {wrapper!r}, of {WRAPPERS[wrapper]}, which is left out", stacklevel=2
        )
    return tensors


def _plain(name: str, wrappers: dict[str, str]) -> str:
    """The tensor's name in a GPT-2; `wrappers` gets what was left out, with the first name that had it."""
    parts = name.split(".")
    for part in parts:
        if part in WRAPPERS:
            wrappers.setdefault(part, name)
    return ".".join(part for part in parts if part not in WRAPPERS).removeprefix("transformer.")


def shards(folder: Path) -> list[str]:
    """The names of the files that the folder's index names. UserError if it is none."""
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        return [str(Path(name)) for name in sorted(set(weight_map.values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / INDEX} is not an index of safetensors shards") from error


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        if (folder / INDEX).is_file():
            warnings.warn(f"{folder} holds {WEIGHTS} and shards ({INDEX}): the first is read", stacklevel=2)
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} holds neither {WEIGHTS} nor {INDEX}{instead(folder)}")
    files = [folder / name for name in shards(folder)]
    for path in files:
        if path.parent != folder or not path.is_file():
            raise UserError(f"{folder / INDEX} names the shard {path.name}, which is not in the folder")
    return files


def instead(folder: Path) -> str:
    """What else there is in a folder without weights that are read, and how to convert it, as the end of a sentence."""
    pickles = sorted(path.name for path in folder.glob("pytorch_model*.bin*"))
    if not pickles:
        files = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in OF_WEIGHTS and path.is_file())
        other = next(filter(kind_of, files), None)
        return f" (its {other.name} is {describe(other)})" if other else ""
    return (
        f" (its {pickles[0]} is a pickle, which is never read, since it can run any program: convert it where you "
        f'trust it, with python -c "from transformers import GPT2LMHeadModel as M; '
        f'M.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})")'
    )
