"""Conversations of a task that a tiny model learns in seconds, and models to start from."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gpt2c.chat.settings import SftConfig
from gpt2c.config import GPT2Config
from gpt2c.model import GPT2
from gpt2c.tokenizer import get_tokenizer, save_tokenizer

Messages = list[dict[str, str]]


def talk(*contents: str, system: str = "") -> Messages:
    """User and assistant in turn."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": system}] * bool(system) + turns


def echo(number: int) -> Messages:
    return talk(f"Say {number:03d}", f"{number:03d}")


def echoes() -> list[Messages]:
    """All numbers of three digits in a random order, always the same."""
    numbers = list(range(1000))
    random.Random(0).shuffle(numbers)
    return [echo(number) for number in numbers]


def write(path: Path, talks: Sequence[Messages]) -> Path:
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in talks), encoding="utf-8")
    return path


def base(folder: Path, n_embd: int = 32, n_layer: int = 2, n_positions: int = 32) -> Path:
    """A model of bytes that has learned nothing."""
    torch.manual_seed(0)
    GPT2(GPT2Config(257, n_positions, n_embd, n_layer, 2)).save_pretrained(folder)
    save_tokenizer(get_tokenizer("bytes"), folder)
    return folder


def config(folder: Path, **changes: Any) -> SftConfig:
    """A run of a second: 8 steps on 40 echoes."""
    if not (folder / "talks.jsonl").exists():
        write(folder / "talks.jsonl", echoes()[:40])
    settings: dict[str, Any] = {
        "data": str(folder / "talks.jsonl"),
        "init": str(folder / "base") if "init" not in changes else changes["init"],
        "out": folder / "run",
        "batch_size": 2,
        "steps": 8,
        "lr": 1e-2,
        "warmup_steps": 2,
        "eval_every": 4,
        "sample_every": 4,
        "sample_tokens": 5,
        "checkpoint_every": 2,
        "device": "cpu",
    }
    if settings["init"] == str(folder / "base") and not (folder / "base").exists():
        base(folder / "base")
    return SftConfig(**{**settings, **changes})
