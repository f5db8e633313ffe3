"""A model's folder: on the disk, or the local copy of the Hugging Face hub's."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gpt2c.errors import UserError, reason
from gpt2c.formats.kinds import OTHERS, WRITTEN, describe
from gpt2c.stored import INDEX, WEIGHTS, shards

# Every file that is read of a model's folder, but for the shards that INDEX names.
FILES = [
    "config.json", "generation_config.json", WEIGHTS, INDEX, "tokenizer.json", "tokenizer_config.json", "vocab.json",
    "merges.txt", "encoder.json", "vocab.bpe", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja",
]  # fmt: skip
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def find(name: str | os.PathLike[str]) -> Path:
    """The folder `name`, or else the local copy of the hub's model `name`, downloaded if need be."""
    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists():
        raise UserError(f"{name} is {describe(Path(name))}")
    if Path(name).suffix.lower() in (*WRITTEN, *OTHERS):
        raise UserError(f"the file {name} does not exist")
    if not HUB_NAME.fullmatch(str(name)):
        raise UserError(f"the folder {name} does not exist")
    folder = _download(str(name), FILES)
    if (folder / WEIGHTS).is_file():
        return folder
    if (folder / INDEX).is_file():
        return _download(str(name), [*FILES, *shards(folder)])
    raise UserError(
        f"the hub's {name} has neither {WEIGHTS} nor {INDEX}; a pickle (pytorch_model.bin) is never read, since it can "
        'run any program: convert it where you trust it, with python -c "from transformers import AutoTokenizer, '
        f"GPT2LMHeadModel; [kind.from_pretrained({str(name)!r}).save_pretrained('converted') for kind in "
        '(AutoTokenizer, GPT2LMHeadModel)]"'
    )


def _download(name: str, files: list[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f"{name} is no folder here, and taking it from the Hugging Face hub needs the package huggingface_hub: "
            'check the path, or pip install "gpt2c[hub]"'
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=files))
    except Exception as error:  # its errors (network, missing, private) share no base class
        raise UserError(
            f"{name} is no folder here, and no model of that name came from the Hugging Face hub ({reason(error)}): "
            "check the path, or the name and the network"
        ) from error
