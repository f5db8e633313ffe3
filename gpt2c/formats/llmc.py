"""llm.c's checkpoints (train_gpt2.c, `gpt2_build_from_checkpoint`; train_gpt2.py, `write_model`), in and out.

256 int32   magic 20240326, version 3 (fp32) or 5 (bf16), positions, V, L, H, C, Vp, zeros
tensors     in the order of _tensors, each over all layers; matrices are (out, in), the embedding has Vp rows, V
            padded with zeros to a multiple of 128

llm.c adds 1e-5 to the variance in every layernorm, and the file has no place for another number, for dropout, nor for a
tokenizer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt2c.config import GPT2Config
from gpt2c.errors import UserError
from gpt2c.files import reading, replacing, writing
from gpt2c.finite import DTYPES, require_fit
from gpt2c.formats.kinds import LLMC_MAGIC as MAGIC
from gpt2c.model import GPT2
from gpt2c.tokenizer import Tokenizer

VERSIONS = {3: "fp32", 5: "bf16"}
EPSILON = 1e-5
HEADER = 256  # int32
PADDING = 128


def export(model: GPT2, tokenizer: Tokenizer, path: Path, dtype: str = "fp32") -> None:
    """Write the file, in fp32 or bf16. llm.c's own programs know GPT-2's tokenizer alone; none is in the file.

    Raises UserError if it cannot be written, for another epsilon than llm.c's, or for a weight that is not finite or
    too large.
    """
    c = model.config
    if np.float32(c.layer_norm_epsilon) != np.float32(EPSILON):
        raise UserError(
            f"the model's layer_norm_epsilon is {c.layer_norm_epsilon}, expected {EPSILON}: llm.c's format has no "
            "place for another; take hf, gguf or onnx"
        )
    for name, parameter in model.named_parameters():
        require_fit(name, parameter, dtype)
    version = next(number for number, kind in VERSIONS.items() if kind == dtype)
    header = np.zeros(HEADER, dtype="<i4")
    header[:8] = MAGIC, version, c.n_positions, c.vocab_size, c.n_layer, c.n_head, c.n_embd, _padded(c.vocab_size)
    state = model.state_dict()
    with writing(path), replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(header.tobytes())
        for names, shape in _tensors(c):
            for name in names:
                tensor = state[name][: c.vocab_size] if name == "wte.weight" else state[name]
                rows = tensor.t() if tensor.ndim == 2 and name.startswith("h.") else tensor
                file.write(_bytes(rows.to(DTYPES[dtype])))
            missing = shape[0] - c.vocab_size if names == ["wte.weight"] else 0
            file.write(_bytes(torch.zeros(missing, c.n_embd, dtype=DTYPES[dtype], device="cpu")))
    _tell_what_is_lost(model, tokenizer, path)


def load(path: Path) -> GPT2:
    """The model in a file, in eval mode; bf16 stays bf16. UserError names the byte of what is wrong."""
    with reading("llm.c checkpoint", path):
        size = path.stat().st_size
        header = np.fromfile(path, dtype="<i4", count=HEADER)
    config, dtype = _parse(header, path)
    padding = (_padded(config.vocab_size) - config.vocab_size) * config.n_embd
    expected = 4 * HEADER + dtype.itemsize * (config.num_parameters() + padding)
    if size != expected:
        raise UserError(f"{path} is truncated or damaged: its header announces {expected} bytes, found {size}")
    with torch.device("meta"):
        model = GPT2(config)
    model = model.to(dtype).to_empty(device="cpu").eval()
    state = model.state_dict()
    with reading("llm.c checkpoint", path), open(path, "rb") as file:
        file.seek(4 * HEADER)
        for names, shape in _tensors(config):
            for name in names:
                count = int(np.prod(shape))
                values = torch.frombuffer(bytearray(file.read(count * dtype.itemsize)), dtype=dtype).view(shape)
                target = state[name]
                rows = slice(config.vocab_size) if name == "wte.weight" else slice(None)
                require_fit(f"{path}: {name}, which ends at byte {file.tell()},", values[rows])
                if name == "wte.weight":
                    target.zero_()
                    target[rows] = values[rows]
                else:
                    target.copy_(values.t() if len(shape) == 2 and name.startswith("h.") else values)
    return model


def _parse(header: np.ndarray, path: Path) -> tuple[GPT2Config, torch.dtype]:
    if len(header) < HEADER or header[0] != MAGIC:
        found = f"found {header[0]}" if len(header) == HEADER else f"the file ends before byte {4 * HEADER}"
        raise UserError(f"{path} is not a checkpoint of llm.c: expected the magic number {MAGIC} at byte 0, {found}")
    if int(header[1]) not in VERSIONS:
        raise UserError(f"{path} is of version {header[1]} at byte 4, expected 3 (fp32) or 5 (bf16)")
    positions, V, L, H, C, padded = map(int, header[2:8])
    try:
        config = GPT2Config(vocab_size=V, n_positions=positions, n_embd=C, n_layer=L, n_head=H)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} has a damaged header, bytes 8 to 31: {error}") from error
    if padded != _padded(V):
        raise UserError(f"{path} has {padded} padded rows at byte 28, expected {_padded(V)}")
    return config, DTYPES[VERSIONS[int(header[1])]]


def _tell_what_is_lost(model: GPT2, tokenizer: Tokenizer, path: Path) -> None:
    lost = [f"the dropout {model.config.dropout}"] if model.config.dropout else []
    if tokenizer.name != "gpt2":
        lost.append(f"the tokenizer {tokenizer.name}")
    elif tokenizer.chat_template:
        lost.append("the chat template")
    if tokenizer.ends != (tokenizer.end_of_text,):
        lost.append(f"the ends of a text {', '.join(map(str, tokenizer.ends))}")
    if lost:
        warnings.warn(f"llm.c's format has no place for {' and '.join(lost)}, which {path} lacks", stacklevel=3)


def _tensors(c: GPT2Config) -> Iterator[tuple[list[str], tuple[int, ...]]]:
    """The names of each of llm.c's tensors, one for each layer, and the shape of one in the file."""
    C = c.n_embd
    yield ["wte.weight"], (_padded(c.vocab_size), C)
    yield ["wpe.weight"], (c.n_positions, C)
    for part, weight, bias in (
        ("ln_1", (C,), (C,)),
        ("attn.c_attn", (3 * C, C), (3 * C,)),
        ("attn.c_proj", (C, C), (C,)),
        ("ln_2", (C,), (C,)),
        ("mlp.c_fc", (4 * C, C), (4 * C,)),
        ("mlp.c_proj", (C, 4 * C), (C,)),
    ):
        yield [f"h.{i}.{part}.weight" for i in range(c.n_layer)], weight
        yield [f"h.{i}.{part}.bias" for i in range(c.n_layer)], bias
    yield ["ln_f.weight"], (C,)
    yield ["ln_f.bias"], (C,)


def _padded(vocab_size: int) -> int:
    return -(-vocab_size // PADDING) * PADDING


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
