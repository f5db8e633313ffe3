"""Flags that were given and have no effect, each told in a note."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

from gpt2c.sampling import Sampling
from gpt2c.settings import TrainConfig, flag

OF_THE_MODEL = ("n_layer", "n_head", "n_embd", "tokenizer")


def tell_unused(given: Sequence[str], command: Any) -> None:
    """Of a command with the settings of a run, or of how texts are drawn; given: the flags, as `typed` has them."""
    if os.environ.get("RANK", "0") != "0":
        return  # another process tells
    settings, sampling = getattr(command, "settings", None), getattr(command, "sampling", None)
    reasons = _of_a_run(settings) if isinstance(settings, TrainConfig) else {}
    if isinstance(sampling, Sampling) and sampling.temperature == 0:
        reasons |= dict.fromkeys(("top_k", "top_p", "seed"), "--temperature is 0: the likeliest token is taken")
    for name, why in reasons.items():
        if name in given:
            warnings.warn(f"{flag(name)} has no effect: {why}", stacklevel=2)


def _of_a_run(config: TrainConfig) -> dict[str, str]:
    reasons = dict.fromkeys(OF_THE_MODEL, "the model of --init has its own") if config.init else {}
    if not config.lora_rank:
        reasons["lora_alpha"] = "there is no --lora-rank"
    if not config.hellaswag:
        reasons["hellaswag_items"] = "there is no --hellaswag"
    if os.environ.get("WORLD_SIZE", "1") == "1":
        reasons["shard_optimizer"] = "there is one process"
    return reasons


def typed(args: Sequence[str]) -> list[str]:
    """The names of the flags among a command line's arguments, as fields have them."""
    return [arg.partition("=")[0].removeprefix("--").replace("-", "_") for arg in args if arg.startswith("--")]
