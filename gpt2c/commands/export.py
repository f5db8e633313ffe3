"""`gpt2c export`; its fields are its flags."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gpt2c.errors import UserError
from gpt2c.formats.kinds import format_to_write
from gpt2c.load import extend, load_model
from gpt2c.model import GPT2
from gpt2c.tokenizer import Tokenizer

DTYPES = {"hf": ("fp32", "fp16", "bf16"), "gguf": ("fp32", "fp16", "q8_0"), "onnx": ("fp32",), "llmc": ("fp32", "bf16")}
USES = {
    "hf": "transformers.AutoModelForCausalLM.from_pretrained({path!r})",
    "gguf": "llama-cli -m {word}",
    "onnx": "onnxruntime.InferenceSession({path!r})",
    "llmc": "./train_gpt2cu -e {word}",
}


@dataclass(frozen=True)
class Export:
    """Write a model for other programs: Hugging Face's libraries, llama.cpp, onnxruntime, llm.c."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A run (its best checkpoint is taken), a checkpoint, or any GPT-2 in Hugging Face's format or on its hub."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """What to write, which must not exist: a folder for `hf`, a file for the others (llm.c wants a name in .bin)."""
    format: Literal["auto", "hf", "gguf", "onnx", "llmc"] = "auto"
    """`hf`: a Hugging Face folder; `gguf`: llama.cpp's; `onnx`: a graph, idx to logits; `llmc`: llm.c's checkpoint;
    `auto`: what OUT's ending says, .gguf, .onnx or .bin, else `hf`."""
    dtype: Literal["fp32", "fp16", "bf16", "q8_0"] = "fp32"
    """Of the matrices: `bf16` for hf and llmc, `fp16` for hf and gguf, `q8_0` (8 bits with scales) for gguf."""

    def run(self) -> int:
        """Write it, and say how it is used."""
        kind = format_to_write(self.out, self.format)
        if self.dtype not in DTYPES[kind]:
            raise UserError(f"--dtype is {self.dtype}, expected one of {', '.join(DTYPES[kind])} for {kind}")
        if self.out.exists():
            raise UserError(f"{self.out} exists: choose another name, or remove it")
        model, tokenizer, folder = load_model(self.model)
        extend(model, tokenizer)
        self._write(kind, model, tokenizer)
        files = [self.out] if self.out.is_file() else sorted(self.out.iterdir())
        size = sum(file.stat().st_size for file in files)
        use = USES[kind].format(path=str(self.out), word=shlex.quote(str(self.out)))
        print(f"{self.out}: {folder} as {kind} in {self.dtype}, {size / 1e6:.1f} MB; use it: {use}")
        return 0

    def _write(self, kind: str, model: GPT2, tokenizer: Tokenizer) -> None:
        from gpt2c.formats import gguf, hf, llmc, onnx

        if kind == "onnx":
            onnx.export(model, tokenizer, self.out)
        else:
            {"hf": hf, "gguf": gguf, "llmc": llmc}[kind].export(model, tokenizer, self.out, self.dtype)
