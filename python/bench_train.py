#!/usr/bin/env python3
"""Training steps of gpt2c beside those of a plain PyTorch model: the same weights, batches and hyperparameters.

Each side runs in a process of its own, so that its peak memory is its own; the processes take turns step by step, so
that both meet the same machine. PyTorch's side is tests/twin.py in eager mode, with torch's fused AdamW and its
clipping; gpt2c's keeps its heap, as `gpt2c train` does.

    python python/bench_train.py --recipe 124m --data FILE
"""

from __future__ import annotations

import multiprocessing
import platform
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import torch
import tyro

import gpt2c
from gpt2c import _native
from gpt2c.data import load_dataset
from gpt2c.evaluate import validation_loss
from gpt2c.settings import TrainConfig
from gpt2c.tokenizer import get_tokenizer
from gpt2c.train import accumulate_gradients, clip_coefficient, learning_rate, make_optimizer, micro_batches

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from twin import Twin  # noqa: E402

# fmt: off
RECIPES = {
    # n_layer, n_head, n_embd, context, batch, tokenizer, lr, min_lr, warm-up, beta2
    "124m": (12, 12, 768, 64, 4, "gpt2", 6e-4, 6e-5, 10, 0.95),
    "shakespeare": (4, 4, 128, 64, 12, "bytes", 1e-3, 1e-4, 100, 0.99),
}
# fmt: on


@dataclass(frozen=True)
class Args:
    """Compare training steps of gpt2c with those of plain PyTorch."""

    recipe: Literal["124m", "shakespeare"] = "124m"
    """`124m`: GPT-2's smallest size; `shakespeare`: nanoGPT's small recipe, on bytes."""
    data: str = "embedded"
    """Text file, or `embedded`."""
    steps: int = 20
    """Optimizer steps; the learning rate's cosine ends there."""
    batch_size: int | None = None
    """Windows in a step; the recipe's own if not given."""
    context: int | None = None
    """Tokens in a window; the recipe's own if not given."""
    threads: int = torch.get_num_threads()
    """Threads of each side."""


def settings_of(args: Args) -> TrainConfig:
    n_layer, n_head, n_embd, context, batch, tokenizer, lr, min_lr, warmup, beta2 = RECIPES[args.recipe]
    return TrainConfig(
        data=args.data, tokenizer=tokenizer, n_layer=n_layer, n_head=n_head, n_embd=n_embd,
        context=args.context or context, batch_size=args.batch_size or batch, steps=args.steps,
        lr=lr, min_lr=min_lr, warmup_steps=warmup, beta1=0.9, beta2=beta2,
    )  # fmt: skip


class Side:
    """One side's model, optimizer and data."""

    def __init__(self, name: str, args: Args) -> None:
        torch.set_num_threads(args.threads)
        self.name, self.config = name, settings_of(args)
        tokenizer = get_tokenizer(self.config.tokenizer)
        self.dataset = load_dataset(self.config.data, tokenizer, self.config.val_fraction, self.config.context)
        torch.manual_seed(self.config.seed)
        self.model = gpt2c.GPT2(self.config.model_config(tokenizer.vocab_size))
        self.optimizer = make_optimizer(self.model, self.config)
        if name == "gpt2c":
            _native.keep_heap()
        else:
            self.model = Twin.of(self.model)
            decays = [[p for p in self.model.parameters() if (p.ndim >= 2) == matrix] for matrix in (True, False)]
            decay = (self.config.weight_decay, 0.0)
            groups = [{"params": p, "weight_decay": d} for p, d in zip(decays, decay, strict=True)]
            betas = (self.config.beta1, self.config.beta2)
            self.optimizer = torch.optim.AdamW(groups, lr=self.config.lr, betas=betas, fused=True)

    def step(self, step: int) -> tuple[float, float]:
        """Loss and seconds of one optimizer step."""
        batches = micro_batches(self.dataset, step, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config)
        start = time.perf_counter()
        if self.name == "torch":
            ((idx, targets),) = batches
            self.optimizer.zero_grad()
            _, loss = self.model(idx, targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
            self.optimizer.step()
            value = loss.item()
        else:
            loss, norm = accumulate_gradients(self.model, self.optimizer, batches)
            self.optimizer.step(grad_scale=clip_coefficient(loss, norm, self.config.grad_clip))
            value = loss.item()
        return value, time.perf_counter() - start

    def validation_loss(self) -> float:
        return validation_loss(self.model, self.dataset.val_batches(self.config.batch_size, self.config.context, 200))


def serve(name: str, args: Args, pipe: Connection) -> None:
    side = Side(name, args)
    pipe.send(sum(p.numel() for p in side.model.parameters()))
    while (request := pipe.recv()) is not None:
        pipe.send(side.step(request) if request else side.validation_loss())
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    args = tyro.cli(Args)
    context = multiprocessing.get_context("spawn")
    sides = {}
    for name in ("gpt2c", "torch"):
        here, there = context.Pipe()
        context.Process(target=serve, args=(name, args, there), daemon=True).start()
        sides[name] = here
    parameters = [pipe.recv() for pipe in sides.values()][0]
    config = settings_of(args)
    tokens = config.batch_size * config.context
    print(f"{platform.processor() or platform.machine()}, {args.threads} threads, torch {torch.__version__}")
    print(f"{args.recipe}: {parameters:,} parameters, B{config.batch_size} x T{config.context}, {config.data}")

    def ask(name: str, request: object) -> object:
        sides[name].send(request)
        return sides[name].recv()

    seconds: dict[str, list[float]] = {name: [] for name in sides}
    print("  step  loss gpt2c  loss torch   ms gpt2c   ms torch")
    for step in range(1, args.steps + 1):
        losses = {}
        for name in sorted(sides, reverse=step % 2 == 0):
            losses[name], elapsed = ask(name, step)
            seconds[name].append(elapsed)
        if step <= 20 or step % 100 == 0:
            ms = {name: seconds[name][-1] * 1e3 for name in sides}
            print(f"{step:6}  {losses['gpt2c']:10.5f}  {losses['torch']:10.5f}  {ms['gpt2c']:9.1f}  {ms['torch']:9.1f}")
    report(args, tokens, seconds, {n: ask(n, 0) for n in sides}, {n: ask(n, None) for n in sides})


def report(args: Args, tokens: int, seconds: dict, losses: dict, memory: dict) -> None:
    warm = {name: times[min(3, len(times) - 1) :] for name, times in seconds.items()}
    medians = {name: statistics.median(times) for name, times in warm.items()}
    print(f"\n{'':24}{'gpt2c':>12}{'torch':>12}{'torch / gpt2c':>15}")

    def row(label: str, values: dict[str, float], form: str) -> None:
        ours, theirs = values["gpt2c"], values["torch"]
        print(f"{label:24}{ours:>12{form}}{theirs:>12{form}}{theirs / ours:>15.2f}")

    row("ms a step, median", {n: s * 1e3 for n, s in medians.items()}, ".1f")
    row("  fastest tenth", {n: statistics.quantiles(t, n=10)[0] * 1e3 for n, t in warm.items()}, ".1f")
    row("  slowest tenth", {n: statistics.quantiles(t, n=10)[-1] * 1e3 for n, t in warm.items()}, ".1f")
    row("tokens a second", {n: tokens / s for n, s in medians.items()}, ",.0f")
    row("seconds, all steps", {n: sum(t) for n, t in seconds.items()}, ".1f")
    row("peak memory, MB", memory, ",.0f")
    row(f"validation loss, {args.steps}", losses, ".4f")


if __name__ == "__main__":
    main()
