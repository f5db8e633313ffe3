"""A Hugging Face folder: AutoModelForCausalLM and AutoTokenizer load it, and generate what the model generates here.

config.json, generation_config.json, model.safetensors      transformers' GPT2LMHeadModel
tokenizer.json, tokenizer_config.json, vocab.json, ...       gpt2c/tokenizer/saving.py
"""

from __future__ import annotations

from pathlib import Path

from gpt2c.chat.template import template_of
from gpt2c.files import making_folder, writing
from gpt2c.finite import DTYPES, require_fit
from gpt2c.load import load_model
from gpt2c.model import GPT2
from gpt2c.tokenizer import Tokenizer, save_tokenizer
from gpt2c.tokenizer.model_ids import write_model_ids


def export(model: GPT2, tokenizer: Tokenizer, folder: Path, dtype: str | None = None) -> None:
    """Write the folder, which must not exist. UserError if that fails, or for a weight that is not finite or too large.

    dtype: fp32, fp16 or bf16, into which the model is turned; None: that of its parameters.
    """
    for name, parameter in model.named_parameters():
        require_fit(name, parameter, dtype or "fp32")
    if dtype:
        model = model.to(DTYPES[dtype])
    with writing(folder), making_folder(folder) as temporary:
        model.save_pretrained(temporary)
        save_tokenizer(tokenizer, temporary, model.config.n_positions)
        template = template_of(tokenizer)
        write_model_ids(temporary, tokenizer, (template.end,) if template else ())


def load(name: str) -> tuple[GPT2, Tokenizer]:
    """The model and tokenizer of a folder in this format, or of the hub's. UserError if it is not a GPT-2."""
    model, tokenizer, _ = load_model(name)
    return model, tokenizer
