"""A model whose vocabulary grows by new tokens, or loses its padding."""

from __future__ import annotations

import dataclasses

import torch

from gpt2c.model import GPT2, Embedding

NOISE = 0.1  # of the rows' standard deviation, so that no two new tokens are the same


@torch.no_grad()
def grow(model: GPT2, vocab_size: int, seed: int) -> None:
    """Give the model's embedding rows up to `vocab_size`, in place: the mean of those that it has, and some noise.

    With the mean, tokens that nobody has seen get no more of the probability than others on average (Hewitt,
    "Initializing New Word Embeddings for Pretrained Language Models", 2021). seed: the same gives the same rows.
    """
    before, width = model.config.vocab_size, model.config.n_embd
    config = dataclasses.replace(model.config, vocab_size=vocab_size)
    rows = model.wte.weight[:before]
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(vocab_size - before, width, generator=generator, dtype=torch.float32, device="cpu").to(rows)
    with torch.device(rows.device):
        wte = Embedding(config.padded_vocab_size, width, used=0).to(rows.dtype)
    wte.weight[:before] = rows
    wte.weight[before:vocab_size] = rows.mean(0) + NOISE * rows.std(0) * noise
    model.wte, model.config = wte, config


@torch.no_grad()
def cut(model: GPT2, vocab_size: int) -> None:
    """Leave the model the first `vocab_size` rows of its embedding, in place."""
    config = dataclasses.replace(model.config, vocab_size=vocab_size)
    old = model.wte.weight
    wte = Embedding(config.padded_vocab_size, config.n_embd, used=0).to(old.dtype)
    wte.weight[:vocab_size] = old[:vocab_size]
    model.wte, model.config = wte, config
