"""The sides of the generation benchmark: one model's weights in gpt2c, transformers and CTranslate2."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import gpt2c
from gpt2c.bench.case import OURS
from gpt2c.bench.report import Report
from gpt2c.decode import WEIGHTS
from gpt2c.errors import reason

# Generates so many tokens, the most likely ones, after ids (B,T).
Generator = Callable[[torch.Tensor, int], object]
KINDS = {"fp32": "float32", "int8": "int8"}  # as CTranslate2 calls them
END = "<|endoftext|>"


def generators(model: gpt2c.GPT2, folder: Path, threads: int, report: Report) -> dict[str, Generator]:
    """Each side's by its name, whose last word says in what it reads the weights.

    Peers that are not installed or cannot take the model are left out, with a note. `folder` must outlive the sides.
    """
    found = {f"{OURS} {weights}": _ours(model, weights) for weights in WEIGHTS}
    for peer, make in (("transformers", _transformers), ("ctranslate2", _ctranslate2)):
        try:
            found |= {f"{peer} {weights}": generator for weights, generator in make(model, folder, threads)}
        except ModuleNotFoundError as error:
            report.note(f"{peer} is left out: {error.name or peer} is not installed")
        except Exception as error:  # of whatever library
            report.note(f"{peer} cannot run here: {reason(error)}")
    return found


def _ours(model: gpt2c.GPT2, weights: str) -> Generator:
    return lambda prompt, new: model.generate(prompt, new, temperature=0, weights=weights)


def _transformers(model: gpt2c.GPT2, folder: Path, threads: int) -> Iterator[tuple[str, Generator]]:
    import transformers

    model.save_pretrained(folder)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    theirs.generation_config.pad_token_id = theirs.generation_config.eos_token_id = None
    yield (
        "fp32",
        lambda prompt, new: theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, min_new_tokens=new, do_sample=False
        ),
    )


def _ctranslate2(model: gpt2c.GPT2, folder: Path, threads: int) -> Iterator[tuple[str, Generator]]:
    import ctranslate2
    import transformers  # its converter reads models by way of it

    model.save_pretrained(folder)
    names = [*(f"t{i}" for i in range(model.config.vocab_size - 1)), END]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    converted = str(folder / "ctranslate2")
    ctranslate2.converters.TransformersConverter(str(folder)).convert(converted)
    for weights, kind in KINDS.items():
        theirs = ctranslate2.Generator(converted, device="cpu", compute_type=kind, intra_threads=threads)
        yield weights, lambda prompt, new, theirs=theirs: theirs.generate_batch(
            [[names[token] for token in row] for row in prompt.tolist()],
            max_length=new, min_length=new, sampling_topk=1, include_prompt_in_result=False, end_token=[],
        )  # fmt: skip
