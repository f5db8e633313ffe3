"""What a file is: by its first bytes, and by the ending of its name."""

from __future__ import annotations

import shlex
from pathlib import Path

from gpt2c.errors import UserError
from gpt2c.files import POINTER, reading

WRITTEN = {".gguf": "gguf", ".onnx": "onnx", ".bin": "llmc"}  # ending -> the format of such a file
PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle")
FRAMEWORKS = (".h5", ".keras", ".msgpack", ".ggml", ".tflite", ".mlmodel", ".pb", ".engine")
OF_WEIGHTS = (*WRITTEN, ".safetensors", *PICKLES, *FRAMEWORKS)
PLAIN = (".npz", ".npy", ".json", ".txt", ".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst")
OTHERS = (".safetensors", *PICKLES, *FRAMEWORKS, *PLAIN)  # never written here
LLMC_MAGIC = 20240326
MAGICS = {
    b"GGUF": "gguf",
    b"PK\x03\x04": "pickle",  # the zip archive of torch.save
    b"\x80\x02": "pickle",
    LLMC_MAGIC.to_bytes(4, "little"): "llmc",
    POINTER[:9]: "pointer",
}
WHAT = {
    "gguf": "a GGUF file, which is written here but not read: give the Hugging Face folder that it was made from",
    "onnx": "an ONNX file, which is written here but not read: give the Hugging Face folder that it was made from",
    "llmc": "a checkpoint of llm.c's: gpt2c import {word} FOLDER makes a folder of it that every command takes",
    "pickle": "a pickle, as torch.save writes it, which is never read, since it can run any program: load it "
    "with torch where you trust it, and save its tensors under transformers' names with "
    "safetensors, beside a config.json",
    "pointer": "only Git LFS's pointer to a file, which `git lfs pull` fetches",
    "safetensors": "a file of weights: give the folder that holds it, as model.safetensors, and its config.json",
    "framework": "another framework's file of weights, which is not read: save the model with transformers, as "
    "model.safetensors",
}


def kind_of(file: Path) -> str | None:
    """gguf, onnx, llmc, pickle or safetensors; None for anything else. UserError if the file cannot be read."""
    with reading("file", file), open(file, "rb") as opened:
        start, size = opened.read(9), file.stat().st_size
    for magic, kind in MAGICS.items():
        if start.startswith(magic):
            return kind
    # safetensors: the length of a header in JSON, and the header
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return "safetensors"
    ending = file.suffix.lower()
    known = {".gguf": "gguf", ".onnx": "onnx", ".safetensors": "safetensors", **dict.fromkeys(PICKLES, "pickle")}
    known |= dict.fromkeys(FRAMEWORKS, "framework")
    return known.get(ending)


def describe(file: Path) -> str:
    """What a file is that was given in place of a model's folder, and what to do, as the end of a sentence."""
    words = WHAT.get(kind_of(file) or "", "a file, expected a folder with config.json and model.safetensors")
    return words.format(word=shlex.quote(str(file)))


def format_to_write(out: Path, wanted: str) -> str:
    """hf, gguf, onnx or llmc: `wanted`, or for `auto` what the ending of `out` says; UserError if they contradict each
    other, or if no file of that ending is written.

    wanted: as --format of `gpt2c export`; `import`: what `gpt2c import` writes, a folder.
    """
    ending = out.suffix.lower()
    if ending in OTHERS:
        raise UserError(
            f"{out} ends in {ending}, and no such file is written: expected the name of a folder (hf), or one in "
            f"{', '.join(f'{end} ({name})' for end, name in WRITTEN.items())}"
        )
    said = WRITTEN.get(ending)
    if said and wanted == "import":
        raise UserError(f"{out} ends in {ending}, which is {said}, but a folder is written: gpt2c export writes {said}")
    if said and wanted not in ("auto", said):
        raise UserError(f"{out} ends in {ending}, which is {said}, but --format is {wanted}: change one of them")
    return wanted if wanted != "auto" else said or "hf"
