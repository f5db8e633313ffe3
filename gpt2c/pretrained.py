"""Hugging Face's GPT-2 format, in and out: config.json with model.safetensors or its shards. Never pickle."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from gpt2c.config import GPT2Config
from gpt2c.errors import UserError, reason
from gpt2c.files import replacing, save_tensors, write_atomically
from gpt2c.finite import require_fit
from gpt2c.hub import find
from gpt2c.stored import WEIGHTS, instead, open_tensors

if TYPE_CHECKING:
    from gpt2c.model import GPT2

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
END_OF_TEXT = 50256  # <|endoftext|>, the only special token of GPT-2's own vocabulary
DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")

# Settings of transformers' GPT2Config which change the arithmetic, with the one value that is GPT-2; absent means it.
REQUIRED = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast", "gelu_accurate"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
# The sizes of transformers' GPT2Config, with its defaults and the names that it takes for them, too.
SIZES = {
    "vocab_size": (50257, None), "n_positions": (1024, "max_position_embeddings"), "n_embd": (768, "hidden_size"),
    "n_layer": (12, "num_hidden_layers"), "n_head": (12, "num_attention_heads"),
}  # fmt: skip


def load(cls: type[GPT2], name: str | os.PathLike[str]) -> GPT2:
    """Builds `cls` from a folder in Hugging Face's GPT-2 format, or from a model of that name on the Hugging Face hub.

    Tensors may be named with or without `transformer.` and what training programs add (gpt2c/stored.py); the causal
    mask's buffers and a tied lm_head are ignored. Weights stored as bf16 throughout stay bf16, all others become fp32.
    The model is on the CPU and, as with transformers, in eval mode: call train() before training it. Its one dropout is
    the file's resid_pdrop.

    Raises UserError, one sentence, if there is no such model, if it is not a GPT-2 in every tensor, or if a weight is
    not finite.
    """
    folder = find(name)
    config = read_config(folder)
    with ExitStack() as stack:
        tensors = open_tensors(folder, stack)
        is_tied = _read_settings(folder).get("tie_word_embeddings", True)
        if is_tied and "lm_head.weight" in tensors:
            tensors.setdefault("wte.weight", tensors["lm_head.weight"])
        _check_tensors(folder, tensors, config)
        _check_head(folder, tensors, is_tied)
        stored = {str(tensor.get_dtype()) for tensor in tensors.values()}
        with torch.device("meta"):  # the initial weights are never drawn
            model = cls(config)
        model = model.to(torch.bfloat16 if stored == {"BF16"} else torch.float32).to_empty(device="cpu").eval()
        with torch.no_grad():
            for key, parameter in model.state_dict().items():
                values, rows = tensors[key][:], tensors[key].get_shape()[0]
                require_fit(f"{folder}: {key}", values, "bf16" if parameter.dtype == torch.bfloat16 else "fp32")
                parameter[:rows].copy_(values)
                parameter[rows:].zero_()  # the vocabulary's padding
    if "F64" in stored:
        warnings.warn(f"{folder} holds weights in float64, which are rounded to fp32", stacklevel=2)
    return model


def save(model: GPT2, folder: str | os.PathLike[str]) -> None:
    """Writes config.json and model.safetensors for transformers' GPT2LMHeadModel.from_pretrained and for `load`.

    The vocabulary's padding is left out. Each file appears whole or not at all: it is written under a temporary name,
    flushed to the disk (fsync) and renamed. Raises UserError, one sentence, if the folder cannot be written, and
    ValueError for a model with other tensors than a GPT-2 has, which nobody could read there.
    """
    folder, vocab = Path(folder), model.config.vocab_size
    foreign = sorted(set(model.state_dict()) ^ {name for name, _ in _shapes(model.config)})
    if foreign:
        raise ValueError(
            f"save_pretrained: {foreign[0]} is not a tensor of this GPT-2, or is missing: merge adapters "
            "(gpt2c.lora.merged), remove parametrizations, and save modules of your own apart"
        )
    tensors = {f"transformer.{name}": tensor.detach() for name, tensor in model.state_dict().items()}
    tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"][:vocab]
    settings = json.dumps(_settings(model), indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / WEIGHTS) as path:
            save_tensors(tensors, path)
        write_atomically(folder / CONFIG, settings.encode())
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot save the model in {folder}: {reason(error)}") from error


def read_config(folder: Path) -> GPT2Config:
    """The sizes in `folder`/config.json, absent ones as in transformers; UserError if it does not describe a GPT-2."""
    path, settings = folder / CONFIG, _read_settings(folder)
    for key, accepted in REQUIRED.items():
        if settings.get(key, accepted[0]) not in accepted:
            raise UserError(f"{path} has {key} {settings[key]!r}, expected {accepted[0]!r}")
    rates = [settings.get(key, 0.1) for key in DROPOUTS]
    if any(rate != rates[2] for rate in rates):
        text = ", ".join(f"{key} {rate}" for key, rate in zip(DROPOUTS, rates, strict=True))
        warnings.warn(f"{path} has {text}, of which the last is taken for all", stacklevel=2)
    try:
        config = GPT2Config(
            **_sizes(path, settings), dropout=rates[2], layer_norm_epsilon=settings.get("layer_norm_epsilon", 1e-5)
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
    if settings.get("n_inner") not in (None, 4 * config.n_embd):
        raise UserError(f"{path} has n_inner {settings['n_inner']!r}, expected 4 * n_embd = {4 * config.n_embd}")
    return config


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if (folder / ADAPTER_CONFIG).exists():
            raise UserError(
                f"{folder} holds adapters ({ADAPTER_CONFIG}) without their model: merge them first, with peft's "
                "merge_and_unload and save_pretrained"
            ) from error
        raise UserError(
            f"{folder} holds no {CONFIG}, expected a model in Hugging Face's GPT-2 format{instead(folder)}"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as JSON: {reason(error)}") from error
    if not isinstance(settings, dict) or "model_type" not in settings:
        raise UserError(f"{path} names no model_type, expected 'gpt2'")
    return settings


def _sizes(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    sizes = {}
    for name, (default, other) in SIZES.items():
        sizes[name] = settings.get(name, settings.get(other, default))
        if settings.get(other, sizes[name]) != sizes[name]:
            raise UserError(f"{path} has {name} {sizes[name]!r} and {other} {settings[other]!r}, expected the same")
    if settings.get("n_ctx", sizes["n_positions"]) != sizes["n_positions"]:
        warnings.warn(
            f"{path} has n_positions {sizes['n_positions']} and n_ctx {settings['n_ctx']}, of which the first is taken",
            stacklevel=3,
        )
    return sizes


def _settings(model: GPT2) -> dict[str, Any]:
    config = model.config
    end = END_OF_TEXT if config.vocab_size == END_OF_TEXT + 1 else None
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": config.vocab_size,
        "n_positions": config.n_positions,
        "n_ctx": config.n_positions,  # transformers no longer writes it; llama.cpp's converter reads no other
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
            longer = next((key for key in tensors if key.endswith(f".{name}")), None)
            hint = f"; it holds {longer}: take off what stands before {name}" if longer else ""
            raise UserError(f"{folder} lacks the tensor {name}, which its {CONFIG} asks for{hint}")
        unexpected.remove(name)
        found = tuple(tensors[name].get_shape())
        if found != shape:
            raise UserError(f"{folder}: {name} has shape {found}, expected {shape} as its {CONFIG} says")
        if str(tensors[name].get_dtype()) not in ("F64", "F32", "F16", "BF16"):
            raise UserError(f"{folder}: {name} has dtype {tensors[name].get_dtype()}, expected a floating-point one")
    unexpected.discard("lm_head.weight")
    if unexpected:
        raise UserError(f"{folder} holds the tensor {min(unexpected)}, which a GPT-2 of its {CONFIG} does not have")


def _check_head(folder: Path, tensors: dict[str, Any], is_tied: bool) -> None:
    head = tensors.get("lm_head.weight")
    if head is None and not is_tied:
        raise UserError(
            f"{folder / CONFIG} has tie_word_embeddings False, expected True, or an lm_head.weight equal to wte.weight"
        )
    if head is not None and not torch.equal(head[:].double(), tensors["wte.weight"][:].double()):
        raise UserError(f"{folder} holds an lm_head.weight that differs from wte.weight, expected tied embeddings")
    if not is_tied:
        warnings.warn(
            f"{folder / CONFIG} has tie_word_embeddings False; the two matrices are equal, and are one from here on",
            stacklevel=3,
        )
