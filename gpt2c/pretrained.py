"""Hugging Face's GPT-2 format, in and out: config.json with model.safetensors or its shards. Never pickle."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from gpt2c.config import GPT2Config
from gpt2c.errors import UserError, reason
from gpt2c.files import replacing, write_atomically

if TYPE_CHECKING:
    from gpt2c.model import GPT2

CONFIG, WEIGHTS, INDEX, PICKLE = "config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
END_OF_TEXT = 50256  # <|endoftext|>, the only special token of GPT-2's own vocabulary
FILES = [CONFIG, WEIGHTS, INDEX, "model-*.safetensors", "tokenizer.json"]  # what is taken from the hub
DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")

# Settings of transformers' GPT2Config which change the arithmetic, with the one value that is GPT-2; absent means it.
REQUIRED = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
CAUSAL_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # buffers in older files, not weights
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def load(cls: type[GPT2], name: str | os.PathLike[str]) -> GPT2:
    """Builds `cls` from a folder in Hugging Face's GPT-2 format, or from a model of that name on the Hugging Face hub.

    Tensors may be named with or without `transformer.`; the causal mask's buffers and a tied lm_head are ignored.
    Weights stored as bf16 throughout stay bf16, all others become fp32. The model is on the CPU and, as with
    transformers, in eval mode: call train() before training it. Its one dropout is the file's resid_pdrop.

    Raises UserError, one sentence, if there is no such model or if it is not a GPT-2 in every tensor.
    """
    folder = find(name)
    config = read_config(folder)
    with ExitStack() as stack:
        tensors = _open_tensors(folder, stack)
        _check_tensors(folder, tensors, config)
        stored = {str(tensor.get_dtype()) for tensor in tensors.values()}
        with torch.device("meta"):  # the initial weights are never drawn
            model = cls(config)
        model = model.to(torch.bfloat16 if stored == {"BF16"} else torch.float32).to_empty(device="cpu").eval()
        with torch.no_grad():
            for key, parameter in model.state_dict().items():
                rows = tensors[key].get_shape()[0]
                parameter[:rows].copy_(tensors[key][:])
                parameter[rows:].zero_()  # the vocabulary's padding
        head = tensors.get("lm_head.weight")
        if head is not None and not torch.equal(head[:], tensors["wte.weight"][:]):
            raise UserError(f"{folder} holds an lm_head.weight that differs from wte.weight, expected tied embeddings")
    return model


def save(model: GPT2, folder: str | os.PathLike[str]) -> None:
    """Writes config.json and model.safetensors for transformers' GPT2LMHeadModel.from_pretrained and for `load`.

    The vocabulary's padding is left out. Each file appears whole or not at all: it is written under a temporary name,
    flushed to the disk (fsync) and renamed. Raises UserError, one sentence, if the folder cannot be written.
    """
    folder, vocab = Path(folder), model.config.vocab_size
    tensors = {f"transformer.{name}": tensor.detach() for name, tensor in model.state_dict().items()}
    tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"][:vocab]
    settings = json.dumps(_settings(model), indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / WEIGHTS) as path:
            save_file(tensors, path, metadata={"format": "pt"})
        write_atomically(folder / CONFIG, settings.encode())
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot save the model in {folder}: {reason(error)}") from error


def read_config(folder: Path) -> GPT2Config:
    """The sizes in `folder`/config.json, absent ones as in transformers; UserError if it does not describe a GPT-2."""
    path = folder / CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no {CONFIG}, expected a model in Hugging Face's GPT-2 format") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as JSON: {reason(error)}") from error
    if not isinstance(settings, dict) or "model_type" not in settings:
        raise UserError(f"{path} names no model_type, expected 'gpt2'")
    for key, accepted in REQUIRED.items():
        if settings.get(key, accepted[0]) not in accepted:
            raise UserError(f"{path} has {key} {settings[key]!r}, expected {accepted[0]!r}")
    rates = [settings.get(key, 0.1) for key in DROPOUTS]
    if any(rate != rates[2] for rate in rates):
        text = ", ".join(f"{key} {rate}" for key, rate in zip(DROPOUTS, rates, strict=True))
        warnings.warn(f"{path} has {text}, of which the last is taken for all", stacklevel=2)
    defaults = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
    sizes = {key: settings.get(key, default) for key, default in defaults.items()}
    try:
        config = GPT2Config(**sizes, dropout=rates[2], layer_norm_epsilon=settings.get("layer_norm_epsilon", 1e-5))
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    if settings.get("n_inner") not in (None, 4 * config.n_embd):
        raise UserError(f"{path} has n_inner {settings['n_inner']!r}, expected 4 * n_embd = {4 * config.n_embd}")
    return config


def _settings(model: GPT2) -> dict[str, Any]:
    config = model.config
    end = END_OF_TEXT if config.vocab_size == END_OF_TEXT + 1 else None
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": config.vocab_size,
        "n_positions": config.n_positions,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_inner": None,
        "layer_norm_epsilon": config.layer_norm_epsilon,
        **dict.fromkeys(DROPOUTS, config.dropout),
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "tie_word_embeddings": True,
        "bos_token_id": end,
        "eos_token_id": end,
        "torch_dtype": str(model.wte.weight.dtype).removeprefix("torch."),
    }


def find(name: str | os.PathLike[str]) -> Path:
    """The folder `name`, or else the local copy of the hub's model `name`, downloaded if need be."""
    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists():
        raise UserError(f"{name} is a file, expected a folder with {CONFIG} and {WEIGHTS}")
    if not HUB_NAME.fullmatch(str(name)):
        raise UserError(f"the folder {name} does not exist")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f"{name} is not a folder, and taking it from the Hugging Face hub needs the package huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(str(name), allow_patterns=FILES))
    except Exception as error:  # its errors (network, missing, private) share no base class
        raise UserError(
            f"{name} is not a folder, and taking it from the Hugging Face hub failed: {reason(error)}"
        ) from error


def _open_tensors(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Tensor name, without `transformer.`, -> safetensors' slice, for all weights in the folder; none is read yet."""
    tensors: dict[str, Any] = {}
    for path in _weight_files(folder):
        try:
            file = stack.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} is not a whole safetensors file: {reason(error)}") from error
        for key in file.keys():
            name = key.removeprefix("transformer.")
            if name in tensors:
                raise UserError(f"{folder} holds the tensor {name} twice")
            if not CAUSAL_MASK.fullmatch(name):
                tensors[name] = file.get_slice(key)
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        pickled = f" (its {PICKLE} is a pickle, which is never read)" if (folder / PICKLE).exists() else ""
        raise UserError(f"{folder} holds neither {WEIGHTS} nor {INDEX}{pickled}")
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        files = [folder / name for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / INDEX} is not an index of safetensors shards") from error
    for path in files:
        if path.parent != folder or not path.is_file():
            raise UserError(f"{folder / INDEX} names the shard {path.name}, which is not in the folder")
    return files


def _shapes(config: GPT2Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and stored shape of every tensor of a GPT-2."""
    width = config.n_embd
    yield "wte.weight", (config.vocab_size, width)
    yield "wpe.weight", (config.n_positions, width)
    for i in range(config.n_layer):
        for norm in ("ln_1", "ln_2"):
            yield f"h.{i}.{norm}.weight", (width,)
            yield f"h.{i}.{norm}.bias", (width,)
        for linear, n_in, n_out in (
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ):
            yield f"h.{i}.{linear}.weight", (n_in, n_out)
            yield f"h.{i}.{linear}.bias", (n_out,)
    yield "ln_f.weight", (width,)
    yield "ln_f.bias", (width,)


def _check_tensors(folder: Path, tensors: dict[str, Any], config: GPT2Config) -> None:
    unexpected = set(tensors)
    for name, shape in _shapes(config):
        if name not in tensors:
            raise UserError(f"{folder} lacks the tensor {name}, which its {CONFIG} asks for")
        unexpected.remove(name)
        found = tuple(tensors[name].get_shape())
        if found != shape:
            raise UserError(f"{folder}: {name} has shape {found}, expected {shape} as its {CONFIG} says")
        if str(tensors[name].get_dtype()) not in ("F64", "F32", "F16", "BF16"):
            raise UserError(f"{folder}: {name} has dtype {tensors[name].get_dtype()}, expected a floating-point one")
    unexpected.discard("lm_head.weight")
    if unexpected:
        raise UserError(f"{folder} holds the tensor {min(unexpected)}, which a GPT-2 of its {CONFIG} does not have")
