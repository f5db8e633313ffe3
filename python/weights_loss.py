#!/usr/bin/env python3
"""What smaller weights cost: the validation loss of a model that reads its matrices in fp32, bf16 and int8.

The loss is that of generation itself, token by token (gpt2c.evaluate.decoding_loss).

    python python/weights_loss.py MODEL --data FILE
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gpt2c import GPT2, checkpoint
from gpt2c.data import load_dataset
from gpt2c.decode import WEIGHTS
from gpt2c.evaluate import decoding_loss
from gpt2c.load import tokenizer_of


@dataclass(frozen=True)
class Args:
    """Compare the validation loss with fp32, bf16 and int8 weights."""

    model: Annotated[str, tyro.conf.Positional]
    """A run, a checkpoint, or any GPT-2 in Hugging Face's format."""
    data: str = "embedded"
    """Text file, or `embedded`; its end is what is evaluated."""
    batches: int = 20
    """Batches of 8 windows, at most."""
    context: int | None = None
    """Tokens in a window; the model's context if not given."""


def main() -> None:
    args = tyro.cli(Args)
    folder = checkpoint.resolve(args.model)
    model = GPT2.from_pretrained(folder)
    context = args.context or model.config.n_positions
    dataset = load_dataset(args.data, tokenizer_of(Path(folder), model.config.vocab_size), 0.1, context)
    print(f"{folder}: {model.num_parameters():,} parameters, windows of {context} tokens of {args.data}")
    print("weights       loss  perplexity  change of it")
    exact = None
    for weights in WEIGHTS:
        loss = decoding_loss(model, dataset.val_batches(8, context, args.batches * 8 * context), weights)
        exact = loss if exact is None else exact
        print(f"{weights:8}{loss:10.5f}{math.exp(loss):12.4f}{math.expm1(loss - exact):+14.4%}")


if __name__ == "__main__":
    main()
