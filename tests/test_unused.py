"""Settings that do nothing, or not what they seem to, are told."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import tiny
import torch

from gpt2c.cli import parse
from gpt2c.step import learning_rate, tell_schedule
from gpt2c.train import train


def notes(*args: str) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parse(list(args))
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["train", "--init=x", "--n-embd", "64"], ["--n-embd has no effect: the model of --init has its own"]),
        (["train", "--init", "x", "--tokenizer=gpt2"], ["--tokenizer has no effect: the model of --init has its own"]),
        (["train", "--n-embd", "64", "--tokenizer", "gpt2"], []),
        (["train", "--init=x", "--lora_alpha=8"], ["--lora-alpha has no effect: there is no --lora-rank"]),
        (["sft", "--init=x", "--lora-alpha=8"], ["--lora-alpha has no effect: there is no --lora-rank"]),
        (["train", "--init=x", "--lora-alpha=8", "--lora-rank=4"], []),
        (["train", "--hellaswag-items", "5"], ["--hellaswag-items has no effect: there is no --hellaswag"]),
        (["train", "--shard-optimizer"], ["--shard-optimizer has no effect: there is one process"]),
        (
            ["sample", "x", "--temperature=0", "--top-k", "5"],
            ["--top-k has no effect: --temperature is 0: the likeliest token is taken"],
        ),
        (["chat", "x", "--top-k", "5"], []),
    ],
)  # fmt: skip
def test_flags_without_an_effect_are_told(args: list[str], told: list[str]) -> None:
    assert notes(*args) == told


def test_a_run_within_its_warm_up_is_told(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = tiny.config(tmp_path, steps=2, warmup_steps=4, lr=1e-3)
    with pytest.warns(
        UserWarning, match="the learning rate climbs to 0.0005 at the last one, --lr is 0.001, and never"
    ):
        train(config)
    with pytest.warns(UserWarning, match="climbs to 0.001 at the last one"):
        train(tiny.config(tmp_path, steps=2, warmup_steps=2, lr=1e-3, out=tmp_path / "other"))


def test_a_longer_run_says_that_its_learning_rate_leaps(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    settings = {"warmup_steps": 0, "lr": 1e-3, "min_lr": 1e-4}
    train(tiny.config(tmp_path, steps=4, **settings))
    told = (
        "--steps is 40, before it was 4: the learning rate goes from 0.0001 to 0.00097 at once, to that of a run of 40"
    )
    longer = tiny.config(tmp_path, steps=40, **settings)
    with pytest.warns(UserWarning, match=told):
        train(longer, resume=True)
    assert learning_rate(5, longer) == pytest.approx(9.7e-4, rel=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell_schedule(longer, longer, 10)  # nothing has changed
